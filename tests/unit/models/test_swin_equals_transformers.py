"""The network against transformers' own Swin and Swinv2, same weights, in double precision."""

from dataclasses import replace

import pytest
import torch
from tiny_swin import randomized, tiny_shape
from torch import Tensor, nn
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
)
from transformers.models.swin.modeling_swin import SwinRelativePositionBias
from transformers_names import to_transformers

from pretrain.config.schema import ModelConfig
from pretrain.models.cost import count_parameters
from pretrain.models.swin import Swin
from pretrain.models.transfer import transfer
from pretrain.models.variants import Shape, shape_of, stage_maps

TOLERANCE = 1e-10
VARIANTS = [f"{family}_{size}" for family in ("swin", "swinv2") for size in "tsbl"]
CLASSES = [f"n{index:08d}" for index in range(5)]


def transformers_network(shape: Shape) -> nn.Module:
    """Their network of the same shape."""
    settings = {
        "image_size": shape.image_size,
        "embed_dim": shape.embed_dim,
        "depths": shape.depths,
        "num_heads": shape.heads,
        "window_size": shape.window_size,
        "num_labels": shape.num_classes,
        "drop_path_rate": 0.0,
    }
    if shape.family == "v2":
        settings["pretrained_window_sizes"] = shape.pretrained_window_sizes
        return Swinv2ForImageClassification(Swinv2Config(**settings))
    # Their eager attention computes the softmax in float32.
    theirs = SwinForImageClassification(SwinConfig(**settings, attn_implementation="sdpa"))
    # Theirs shrinks windows to the map but not their bias tables, and then fails.
    for stage, stage_map in zip(theirs.swin.encoder.layers, stage_maps(shape), strict=True):
        for block in stage.blocks:
            heads, window = block.attention.num_attention_heads, stage_map.window
            block.attention.relative_position_bias = SwinRelativePositionBias(
                heads, (window, window)
            )
    return theirs


def with_weights_of(model: Swin) -> nn.Module:
    theirs = transformers_network(model.shape).double().eval()
    theirs.load_state_dict(to_transformers(model.state_dict(), model.shape.family))
    return theirs


def assert_equal_everywhere(model: Swin, height: int, width: int, images: int = 2) -> None:
    """Logits, features and every parameter's gradient."""
    model = model.double().eval()
    theirs, classes = with_weights_of(model), model.shape.num_classes
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(images, 3, height, width, generator=generator, dtype=torch.float64)
    weights = torch.randn(images, classes, generator=generator, dtype=torch.float64)

    ours_out, theirs_out = model(inputs), theirs(inputs).logits
    assert ours_out.std() > 0.1
    assert (ours_out - theirs_out).abs().max() < TOLERANCE

    ours_grad, theirs_grad = (
        gradients(model, ours_out, weights),
        gradients(theirs, theirs_out, weights),
    )
    ours_grad = to_transformers(ours_grad, model.shape.family)
    assert ours_grad.keys() == theirs_grad.keys()
    for name, gradient in theirs_grad.items():
        assert (ours_grad[name] - gradient).abs().max() < TOLERANCE, name

    with torch.no_grad():
        ours_maps = model.forward_features(inputs)
        theirs_maps = their_features(theirs, inputs)
    assert len(ours_maps) == len(theirs_maps) == 4
    for ours_map, theirs_map in zip(ours_maps, theirs_maps, strict=True):
        assert ours_map.shape == theirs_map.shape
        assert (ours_map - theirs_map).abs().max() < TOLERANCE


def gradients(model: nn.Module, logits: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Gradient of each parameter, of the logits' weighted sum."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((logits * weights).sum(), parameters)
    return dict(zip(names, found, strict=True))


def their_features(theirs: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
    body = getattr(theirs, theirs.base_model_prefix)
    tokens, sides = body.embeddings(inputs)
    encoded = body.encoder(
        tokens,
        sides,
        output_hidden_states=True,
        output_hidden_states_before_downsampling=True,
    )
    return encoded.reshaped_hidden_states[1:]  # the first is the patch embedding


@pytest.mark.parametrize(
    ("shape", "height", "width"),
    [
        pytest.param(tiny_shape(224, 7), 224, 224, id="published size"),
        pytest.param(tiny_shape(384, 12), 384, 384, id="window 12"),
        pytest.param(tiny_shape(128, 4), 128, 192, id="wide, tiled"),
        pytest.param(tiny_shape(128, 4), 150, 233, id="odd maps, padded windows"),
        pytest.param(tiny_shape(224, 7), 225, 299, id="padded windows of 7"),
        pytest.param(tiny_shape(64, 8), 64, 64, id="maps smaller than the window"),
        pytest.param(tiny_shape(64, 8), 61, 63, id="smaller maps, padded"),
    ],
)
def test_small_v1_networks_equal_theirs(shape, height, width):
    assert_equal_everywhere(randomized(Swin(shape)), height, width)


@pytest.mark.parametrize(
    ("image_size", "window_size", "trained", "height", "width"),
    [
        pytest.param(256, 8, (0, 0, 0, 0), 256, 256, id="window 8"),
        pytest.param(256, 16, (0, 0, 0, 0), 256, 256, id="window 16"),
        pytest.param(256, 16, (12, 12, 12, 6), 256, 256, id="window 16, trained with 12"),
        pytest.param(128, 8, (12, 12, 12, 6), 150, 233, id="odd maps, padded windows"),
        pytest.param(128, 4, (0, 0, 0, 0), 128, 192, id="wide, tiled"),
        pytest.param(64, 8, (0, 0, 0, 0), 64, 64, id="maps smaller than the window"),
        pytest.param(256, 8, (0, 0, 0, 0), 45, 70, id="maps that became smaller than the window"),
    ],
)
def test_small_v2_networks_equal_theirs(image_size, window_size, trained, height, width):
    shape = tiny_shape(image_size, window_size, family="v2", pretrained_window_sizes=trained)
    assert_equal_everywhere(randomized(Swin(shape)), height, width, images=1)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param(tiny_shape(224, 7), tiny_shape(384, 12), id="v1 224 to 384"),
        pytest.param(
            tiny_shape(192, 12, family="v2"),
            tiny_shape(384, 24, family="v2", pretrained_window_sizes=(12, 12, 12, 6)),
            id="v2 192 to 384",
        ),
    ],
)
def test_networks_equal_theirs_after_a_transfer(source, target):
    model = randomized(Swin(target), seed=1)
    transfer(randomized(Swin(source)).state_dict(), CLASSES, model, CLASSES)
    assert_equal_everywhere(model, target.image_size, target.image_size, images=1)


@pytest.mark.parametrize("wide", [False, True], ids=["window 7 or 8", "window 12 or 16"])
@pytest.mark.parametrize(
    "variant",
    [
        *("swin_t", "swin_b", "swinv2_t", "swinv2_b"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("swin_l", "swinv2_l")),
    ],
)
def test_every_variants_widths_and_heads_equal_theirs(variant, wide):
    """Every stage at its full width (S has T's), with the fewest blocks that show both windows."""
    window = {"swin": (7, 12), "swinv2": (8, 16)}[variant.partition("_")[0]][wide]
    side = 96 if wide else 64
    config = ModelConfig(
        variant=variant, image_size=side, window_size=window, num_classes=5, depths=(2, 1, 1, 1)
    )
    assert_equal_everywhere(randomized(Swin(shape_of(config))), side, 96, images=1)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_variants_equal_theirs(variant):
    image_size, window = (256, 8) if variant.startswith("swinv2") else (224, 7)
    config = ModelConfig(
        variant=variant, image_size=image_size, window_size=window, num_classes=1000
    )
    assert_equal_everywhere(randomized(Swin(shape_of(config))), image_size, image_size, images=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_as_many_as_theirs(variant):
    image_size, window = (256, 16) if variant.startswith("swinv2") else (224, 7)
    config = ModelConfig(
        variant=variant, image_size=image_size, window_size=window, num_classes=1000
    )
    with torch.device("meta"):
        theirs = transformers_network(replace(shape_of(config), num_classes=1000))
    assert count_parameters(shape_of(config)) == sum(p.numel() for p in theirs.parameters())
