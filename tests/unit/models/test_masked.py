"""Masked pre-training's network and loss, against transformers' and their own definition."""

from dataclasses import replace

import pytest
import torch
from tiny_swin import randomized, tiny_shape
from torch import Tensor, nn
from transformers import (
    SwinConfig,
    SwinForMaskedImageModeling,
    Swinv2Config,
    Swinv2ForMaskedImageModeling,
)
from transformers_names import to_transformers

from pretrain.config.schema import ModelConfig
from pretrain.models.cost import count_parameters
from pretrain.models.masked import (
    MaskedSwin,
    build_masked,
    encoder_weights,
    enlarge,
    restoration_loss,
)
from pretrain.models.swin import Swin
from pretrain.models.variants import Shape, masked_shape, shape_of

TOLERANCE = 1e-10
SWIN_B = ModelConfig(variant="swin_b", image_size=192, window_size=6, num_classes=1000)


def tiny_masked(image_size: int = 64, window_size: int = 4, family="v1") -> MaskedSwin:
    shape = tiny_shape(image_size, window_size, family=family)
    return randomized(MaskedSwin(masked_shape(shape)))  # pyright: ignore[reportArgumentType]


def their_network(shape: Shape) -> nn.Module:
    settings = {
        "image_size": shape.image_size,
        "embed_dim": shape.embed_dim,
        "depths": shape.depths,
        "num_heads": shape.heads,
        "window_size": shape.window_size,
        "encoder_stride": 32,
        "drop_path_rate": 0.0,
    }
    if shape.family == "v2":
        return Swinv2ForMaskedImageModeling(Swinv2Config(**settings))
    # Their eager attention computes the softmax in float32.
    return SwinForMaskedImageModeling(SwinConfig(**settings, attn_implementation="sdpa"))


def in_their_names(tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    body = {"v1": "swin", "v2": "swinv2"}[family]
    renamed = to_transformers(encoder_weights(tensors), family)
    renamed[f"{body}.embeddings.mask_token"] = tensors["mask_token"].view(1, 1, -1)
    return renamed | {
        f"decoder.0.{kind}": tensors[f"decoder.{kind}"] for kind in ("weight", "bias")
    }


def batch(images: int, image_size: int, squares: int) -> tuple[Tensor, Tensor]:
    """Images, and as many hidden squares in each, as the recipe has it."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(images, 3, image_size, image_size, generator=generator).double()
    order = torch.rand(images, squares**2, generator=generator).argsort(1)
    return pixels, (order < 0.6 * squares**2).view(images, squares, squares)


def gradients(loss: Tensor, network: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize(
    ("family", "image_size", "window_size", "squares"),
    [
        ("v1", 192, 6, 6),  # the published size: squares of 32 pixels
        ("v1", 64, 2, 8),  # squares of 8
        ("v1", 96, 3, 24),  # each patch by itself
        ("v2", 192, 6, 6),
    ],
)
def test_equals_transformers(family, image_size, window_size, squares):
    """Restored pixels, loss, and every parameter's gradient."""
    ours = tiny_masked(image_size, window_size, family).double()
    theirs = their_network(ours.encoder.shape).double()
    theirs.load_state_dict(in_their_names(ours.state_dict(), family))
    images, hidden = batch(2, image_size, squares)
    tokens = enlarge(hidden, image_size // 4).flatten(1)
    expected = theirs(images, bool_masked_pos=tokens)

    restored = ours(images, hidden)
    losses = restoration_loss(restored, (images, hidden))
    assert restored.std() > 0.1
    assert (restored - expected.reconstruction).abs().max() < TOLERANCE
    assert losses.shape == (2,)
    assert abs(losses.mean() - expected.loss) < TOLERANCE

    found = in_their_names(gradients(losses.mean(), ours), family)
    wanted = gradients(expected.loss, theirs)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        assert (found[name] - gradient).abs().max() < TOLERANCE, name


def test_the_recipes_network_is_as_large_as_theirs():
    with torch.device("meta"):
        ours = build_masked(SWIN_B)
        theirs = their_network(shape_of(SWIN_B))
    sizes = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    assert sizes[0] == sizes[1] == count_parameters(masked_shape(shape_of(SWIN_B))) == 89_874_104


def test_what_is_hidden_is_not_seen_and_what_is_seen_is_not_counted():
    model = tiny_masked().double()
    images, hidden = batch(3, 64, 4)
    pixels = enlarge(hidden, 64).unsqueeze(1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(7)).double()
    restored = model(images, hidden)
    assert torch.equal(model(torch.where(pixels, noise, images), hidden), restored)
    assert not torch.equal(model(torch.where(pixels, images, noise), hidden), restored)

    losses = restoration_loss(restored, (images, hidden))
    of_noise = torch.where(pixels, images, noise)
    assert torch.equal(restoration_loss(restored, (of_noise, hidden)), losses)
    by_hand = [
        (restored[i] - images[i]).abs().masked_select(pixels[i]).mean() for i in range(3)
    ]  # over hidden pixels and channels
    assert torch.allclose(losses, torch.stack(by_hand), rtol=0, atol=1e-12)


def test_losses_of_low_precision_outputs_are_in_the_images_precision():
    images, hidden = batch(2, 64, 4)
    images = images.float()
    loss = restoration_loss(images.bfloat16(), (images, hidden))
    assert loss.dtype == torch.float32
    assert (loss > 0).all()


def test_initialisation_is_the_recipes():
    torch.manual_seed(3)
    model = build_masked(SWIN_B.model_copy(update={"variant": "swin_t"}))
    token, decoder = model.mask_token.detach(), model.decoder
    assert 0.015 < token.std() < 0.025
    bound = model.encoder.shape.channels[-1] ** -0.5  # torch's own for a convolution
    for parameter in (decoder.weight, decoder.bias):
        assert parameter is not None
        assert bound * 0.98 < parameter.abs().max() <= bound
    assert not model.encoder.layers[0].blocks[0].attn.qkv.bias.any()  # pyright: ignore


def test_depths_span_token_encoder_and_decoder():
    depths = tiny_masked().layer_depths()
    assert depths["mask_token"] == depths["encoder.patch_embed.proj.weight"] == 0
    assert depths["decoder.weight"] == depths["encoder.norm.bias"] == 9
    assert depths.keys() == dict(tiny_masked().named_parameters()).keys()


def test_the_encoders_weights_are_a_swins_without_a_head():
    model = tiny_masked()
    weights = encoder_weights(model.state_dict())
    swin = Swin(replace(tiny_shape(), num_classes=0))
    swin.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(swin(images), model.encoder(images))
    assert swin(images).shape == (2, 96)
    assert encoder_weights(weights).keys() == weights.keys()
