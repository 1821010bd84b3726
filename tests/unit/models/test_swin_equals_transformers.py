"""The network against transformers' own Swin, with the same weights, in double precision."""

import pytest
import torch
from tiny_swin import randomized, tiny_shape
from torch import Tensor
from transformers import SwinConfig, SwinForImageClassification
from transformers.models.swin.modeling_swin import SwinRelativePositionBias
from transformers_names import to_transformers

from pretrain.config.schema import ModelConfig
from pretrain.models.swin import Swin
from pretrain.models.variants import Shape, shape_of, stage_maps

TOLERANCE = 1e-10


def transformers_swin(model: Swin) -> SwinForImageClassification:
    """Their network of the same shape with the model's weights."""
    shape = model.shape
    config = SwinConfig(
        image_size=shape.image_size,
        embed_dim=shape.embed_dim,
        depths=shape.depths,
        num_heads=shape.heads,
        window_size=shape.window_size,
        num_labels=shape.num_classes,
        drop_path_rate=0.0,
        attn_implementation="sdpa",  # the eager one computes the softmax in float32
    )
    theirs = SwinForImageClassification(config)
    # Theirs shrinks windows to the map but not their bias tables, and then fails.
    for stage, stage_map in zip(theirs.swin.encoder.layers, stage_maps(shape), strict=True):
        for block in stage.blocks:
            heads, window = block.attention.num_attention_heads, stage_map.window
            block.attention.relative_position_bias = SwinRelativePositionBias(
                heads, (window, window)
            )
    theirs = theirs.double().eval()
    theirs.load_state_dict(to_transformers(model.state_dict()))
    return theirs


def assert_equal_everywhere(shape: Shape, height: int, width: int, images: int = 2) -> None:
    """Logits, features and every parameter's gradient."""
    model = randomized(Swin(shape).double().eval())
    theirs = transformers_swin(model)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(images, 3, height, width, generator=generator, dtype=torch.float64)
    weights = torch.randn(images, shape.num_classes, generator=generator, dtype=torch.float64)

    ours_out, theirs_out = model(inputs), theirs(inputs).logits
    assert ours_out.std() > 0.1
    assert (ours_out - theirs_out).abs().max() < TOLERANCE

    ours_grad, theirs_grad = (
        gradients(model, ours_out, weights),
        gradients(theirs, theirs_out, weights),
    )
    ours_grad = to_transformers(ours_grad)
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


def gradients(model: torch.nn.Module, logits: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Gradient of each parameter, of the logits' weighted sum."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((logits * weights).sum(), parameters)
    return dict(zip(names, found, strict=True))


def their_features(theirs: SwinForImageClassification, inputs: Tensor) -> tuple[Tensor, ...]:
    tokens, sides = theirs.swin.embeddings(inputs)
    encoded = theirs.swin.encoder(
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
def test_small_networks_equal_theirs(shape, height, width):
    assert_equal_everywhere(shape, height, width)


def test_swin_t_equals_theirs():
    shape = shape_of(ModelConfig(variant="swin_t", image_size=224, window_size=7, num_classes=1000))
    assert_equal_everywhere(shape, 224, 224, images=1)
