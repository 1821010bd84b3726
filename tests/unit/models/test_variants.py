import gc
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny_swin import tiny_shape
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config.schema import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.swin import Swin
from pretrain.models.variants import (
    Shape,
    activation_bytes_per_image,
    check_image_size,
    count_forward_macs,
    count_parameters,
    shape_of,
    stage_maps,
)


def config(variant="swin_t", image_size=224, window_size=7, num_classes=1000, **overrides):
    return ModelConfig(
        variant=variant,
        image_size=image_size,
        window_size=window_size,
        num_classes=num_classes,
        **overrides,
    )


# Computed from the published architecture; Swin-T's agrees with a published training log.
GOLDEN_PARAMETERS = {
    "swin_t": (28_288_354, 44_315_083, 28_338_034),
    "swin_s": (49_606_258, 65_632_987, 49_707_778),
    "swin_b": (87_768_224, 109_130_249, 87_903_584),
    "swin_l": (196_532_476, 228_565_093, 196_735_516),
}


@pytest.mark.parametrize("variant", GOLDEN_PARAMETERS)
def test_parameters_are_the_published_counts(variant):
    shapes = [
        shape_of(config(variant)),
        shape_of(config(variant, num_classes=21841)),
        shape_of(config(variant, image_size=384, window_size=12)),
    ]
    assert tuple(count_parameters(shape) for shape in shapes) == GOLDEN_PARAMETERS[variant]


@pytest.mark.parametrize(
    "model",
    [
        config(),
        config("swin_s", num_classes=21841),
        config("swin_b", image_size=384, window_size=12),
        config("swin_l", image_size=64, window_size=8),
    ],
    ids=lambda model: f"{model.variant} {model.image_size} {model.num_classes}",
)
def test_counts_are_those_of_the_network(model):
    with torch.device("meta"):
        swin = Swin(shape_of(model))
    assert count_parameters(shape_of(model)) == sum(p.numel() for p in swin.parameters())


@pytest.mark.parametrize(
    ("variant", "image_size", "window_size", "published_giga"),
    [
        ("swin_t", 224, 7, 4.5),
        ("swin_s", 224, 7, 8.7),
        ("swin_b", 224, 7, 15.4),
        ("swin_l", 224, 7, 34.5),
        ("swin_b", 384, 12, 47.1),
        ("swin_l", 384, 12, 103.9),
    ],
)
def test_macs_are_the_published_flops(variant, image_size, window_size, published_giga):
    macs = count_forward_macs(shape_of(config(variant, image_size, window_size)))
    assert round(macs / 1e9, 1) == published_giga


@pytest.mark.parametrize("image_size", [64, 60, 100])
def test_macs_are_those_torch_counts(image_size):
    shape = tiny_shape(image_size=image_size)
    with FlopCounterMode(display=False) as counter:  # with gradients, whose products it counts
        Swin(shape).eval()(torch.zeros(1, 3, image_size, image_size))
    assert counter.get_total_flops() == 2 * count_forward_macs(shape)


def test_overrides_replace_the_variants_row():
    shape = shape_of(config(embed_dim=24, depths=(1, 1, 2, 1), heads=(2, 2, 4, 4), drop_path=0.2))
    assert shape == Shape(24, (1, 1, 2, 1), (2, 2, 4, 4), 224, 7, 1000, 0.2)
    assert shape.channels == (24, 48, 96, 192)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ConfigError, match=r"model\.heads\[1\]: got 5, .* 192 channels"):
        shape_of(config(heads=(3, 5, 12, 24)))


def test_windows_shrink_to_the_map_and_lose_their_shift():
    assert stage_maps(shape_of(config())) == [(56, 7, 3), (28, 7, 3), (14, 7, 3), (7, 7, 0)]
    assert stage_maps(shape_of(config(image_size=64, window_size=8))) == [
        (16, 8, 4),
        (8, 8, 0),
        (4, 4, 0),
        (2, 2, 0),
    ]


@pytest.mark.parametrize(
    ("image_size", "window_size"),
    [(224, 7), (448, 7), (384, 12), (192, 12), (256, 8), (32, 8), (64, 8), (32, 12)],
)
def test_tiled_image_sizes_pass(image_size, window_size):
    check_image_size(shape_of(config(image_size=image_size, window_size=window_size)))


@pytest.mark.parametrize(
    ("image_size", "window_size", "nearest"),
    [
        (225, 7, "224 or 448"),
        (224, 12, "192 or 384"),
        (96, 8, "64 or 128"),
        (1000, 7, "896 or 1120"),
        (20, 7, "224"),
        (100, 1, "96 or 128"),
    ],
)
def test_untiled_image_sizes_are_refused_with_the_nearest(image_size, window_size, nearest):
    shape = shape_of(config(image_size=image_size, window_size=window_size))
    with pytest.raises(ConfigError, match=rf"got {image_size}, .*: {nearest}$"):
        check_image_size(shape)


@pytest.mark.parametrize("window_size", [1, 4, 7, 8, 12])
def test_sizes_pass_exactly_where_nothing_is_padded_and_those_named_pass(window_size):
    def pads(image_size: int) -> bool:
        maps = stage_maps(tiny_shape(image_size, window_size))
        return image_size % 32 != 0 or any(side % window for side, window, _ in maps)

    for image_size in [*range(1, 1200, 7), *range(32, 1200, 32)]:
        try:
            check_image_size(tiny_shape(image_size, window_size))
            assert not pads(image_size), image_size
        except ConfigError as error:
            assert pads(image_size), image_size
            named = str(error).rpartition(": ")[2].split(" or ")
            assert not any(pads(int(size)) for size in named)


class SavingAttention(torch.autograd.Function):
    """Attention that saves what the memory-efficient kernel of a GPU saves."""

    @staticmethod
    def forward(ctx, query, key, value, bias, attend):
        output = attend(query, key, value, attn_mask=bias)
        output = output.transpose(1, 2).contiguous().transpose(1, 2)  # the kernel's memory order
        logsumexp = torch.empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, output, logsumexp)
        return output


def live_tensors(also: list[Tensor]) -> dict[int, int]:
    """Bytes of each storage that Python can see, or that is in ``also``."""
    gc.collect()  # what other tests left in cycles may go at any moment, and come back elsewhere
    found = also + [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}


def kept_bytes(model: Swin, images: int, precision: str) -> int:
    """Bytes a forward pass keeps alive for the backward pass."""
    before, saved = live_tensors([]), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    side = model.shape.image_size
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        logits = model(torch.zeros(images, 3, side, side))
    after = live_tensors([*saved, logits])
    return sum(size for storage, size in after.items() if storage not in before)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_activation_estimate_is_what_a_forward_pass_keeps(monkeypatch, precision, recompute):
    attend, dtype = F.scaled_dot_product_attention, {"bf16": torch.bfloat16}.get(precision)

    def saving_attention(query, key, value, attn_mask):
        cast = (t.to(dtype or torch.float32) for t in (query, key, value, attn_mask))
        return SavingAttention.apply(*cast, attend)

    monkeypatch.setattr(F, "scaled_dot_product_attention", saving_attention)
    shape = shape_of(config(embed_dim=48, image_size=128, window_size=4, num_classes=3))
    model = Swin(shape, (recompute,) * 4)
    measured = (kept_bytes(model, 3, precision) - kept_bytes(model, 1, precision)) / 2
    estimate = activation_bytes_per_image(shape, precision, (recompute,) * 4)
    if recompute == "full":  # beside what is kept, the estimate holds one recomputed block
        deeper, deepest = (replace(shape, depths=(depth, 2, 6, 2)) for depth in (3, 4))
        estimate += activation_bytes_per_image(deeper, precision)
        estimate -= activation_bytes_per_image(deepest, precision)
    assert measured == pytest.approx(estimate, rel=0.02)


def test_shapes_and_costs_need_no_torch():
    code = "import sys, pretrain.models.variants; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
