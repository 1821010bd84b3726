import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_swin import FAMILIES, config, tiny_shape
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.cost import (
    activation_bytes_per_image,
    count_forward_macs,
    count_parameters,
)
from pretrain.models.masked import MaskedSwin, restoration_loss
from pretrain.models.swin import Swin
from pretrain.models.variants import VARIANTS, Shape, masked_shape, shape_of, stage_maps

# Computed from the published architecture; Swin-T's agrees with a published training log.
GOLDEN_PARAMETERS = {
    "swin_t": (28_288_354, 44_315_083, 28_338_034),
    "swin_s": (49_606_258, 65_632_987, 49_707_778),
    "swin_b": (87_768_224, 109_130_249, 87_903_584),
    "swin_l": (196_532_476, 228_565_093, 196_735_516),
}


@pytest.mark.parametrize("variant", GOLDEN_PARAMETERS)
def test_v1_parameters_are_the_published_counts(variant):
    shapes = [
        shape_of(config(variant)),
        shape_of(config(variant, num_classes=21841)),
        shape_of(config(variant, image_size=384, window_size=12)),
    ]
    assert tuple(count_parameters(shape) for shape in shapes) == GOLDEN_PARAMETERS[variant]


# Heads of 1,000 and 21,841 classes. V2's do not depend on the window, and are transformers' too.
# Published, in millions (1,000 classes): 28, 50, 88, 197, 658, 3,000 and 23, 21, 20, 61.
OTHER_GOLDEN_PARAMETERS = {
    "swinv2_t": (256, 8, 28_347_154, 44_373_883),
    "swinv2_s": (256, 16, 49_728_418, 65_755_147),
    "swinv2_b": (192, 12, 87_918_816, 109_280_841),
    "swinv2_l": (384, 24, 196_739_932, 228_772_549),
    "swinv2_h": (192, 12, 657_891_704, 716_600_801),
    "swinv2_g": (192, 12, 3_001_940_680, 3_087_326_257),
    "swin_mlp_t_c6": (256, 8, 22_682_952, 38_709_681),
    "swin_mlp_t_c12": (256, 8, 21_152_072, 37_178_801),
    "swin_mlp_t_c24": (256, 8, 20_386_632, 36_413_361),
    "swin_mlp_b": (224, 7, 60_659_416, 82_021_441),
}


@pytest.mark.parametrize("variant", OTHER_GOLDEN_PARAMETERS)
def test_v2_and_mlp_parameters_are_the_published_counts(variant):
    image_size, window_size, *golden = OTHER_GOLDEN_PARAMETERS[variant]
    counts = [
        count_parameters(shape_of(config(variant, image_size, window_size, classes)))
        for classes in (1000, 21841)
    ]
    assert counts == golden


def test_every_variant_has_a_golden_count():
    assert GOLDEN_PARAMETERS.keys() | OTHER_GOLDEN_PARAMETERS.keys() == VARIANTS.keys()


@pytest.mark.parametrize(
    "model",
    [
        config(),
        config("swin_s", num_classes=21841),
        config("swin_b", image_size=384, window_size=12),
        config("swin_l", image_size=64, window_size=8),
        config("swinv2_t", image_size=256, window_size=16),
        config("swinv2_h", image_size=192, window_size=12),
        config("swinv2_g", image_size=192, window_size=12),
        config("swin_mlp_t_c6", image_size=256, window_size=8),
        config("swin_mlp_b"),
    ],
    ids=lambda model: f"{model.variant} {model.image_size} {model.num_classes}",
)
def test_counts_are_those_of_the_network(model):
    with torch.device("meta"):
        swin = Swin(shape_of(model))
    assert count_parameters(shape_of(model)) == sum(p.numel() for p in swin.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_of_masked_pretraining_are_those_of_its_network(family):
    shape = masked_shape(tiny_shape(family=family))
    network = MaskedSwin(shape)
    assert count_parameters(shape) == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, 64, 64), torch.zeros(1, 2, 2, dtype=torch.bool))
    per_batch = bias_network_macs(shape) if family == "v2" else 0
    assert counter.get_total_flops() == 2 * (count_forward_macs(shape) + per_batch)


@pytest.mark.parametrize(
    ("variant", "image_size", "window_size", "published_giga"),
    [
        ("swin_t", 224, 7, 4.5),
        ("swin_s", 224, 7, 8.7),
        ("swin_b", 224, 7, 15.4),
        ("swin_l", 224, 7, 34.5),
        ("swin_b", 384, 12, 47.1),
        ("swin_l", 384, 12, 103.9),
        ("swinv2_t", 256, 8, 5.9),
        ("swinv2_s", 256, 8, 11.5),
        ("swinv2_b", 256, 8, 20.3),
        ("swinv2_t", 256, 16, 6.6),
        ("swinv2_s", 256, 16, 12.6),
        ("swinv2_b", 256, 16, 21.8),
        ("swinv2_b", 384, 24, 54.7),
        ("swinv2_l", 256, 16, 47.5),
        ("swinv2_l", 384, 24, 115.4),
        ("swin_mlp_t_c6", 256, 8, 4.0),
        ("swin_mlp_t_c12", 256, 8, 4.0),
        ("swin_mlp_t_c24", 256, 8, 4.0),
        ("swin_mlp_b", 224, 7, 10.4),
    ],
)
def test_macs_are_the_published_flops(variant, image_size, window_size, published_giga):
    macs = count_forward_macs(shape_of(config(variant, image_size, window_size)))
    assert round(macs / 1e9, 1) == published_giga


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image_size", [64, 60, 100])
def test_macs_are_those_torch_counts(image_size, family):
    shape = tiny_shape(image_size=image_size, family=family)
    with FlopCounterMode(display=False) as counter:  # with gradients, whose products it counts
        Swin(shape).eval()(torch.zeros(1, 3, image_size, image_size))
    per_batch = bias_network_macs(shape) if family == "v2" else 0
    assert counter.get_total_flops() == 2 * (count_forward_macs(shape) + per_batch)


def bias_network_macs(shape: Shape) -> int:
    """What V2's blocks compute once per batch: 2 to 512 to the heads, for each offset."""
    return sum(
        depth * (2 * stage_map.window - 1) ** 2 * 512 * (2 + heads)
        for depth, heads, stage_map in zip(
            shape.depths, shape.heads, stage_maps(shape), strict=True
        )
    )


class SavingAttention(torch.autograd.Function):
    """Attention that saves what the memory-efficient kernel of a GPU saves."""

    @staticmethod
    def forward(ctx, query, key, value, bias, scale, attend):
        output = attend(query, key, value, attn_mask=bias, scale=scale)
        output = output.transpose(1, 2).contiguous().transpose(1, 2)  # the kernel's memory order
        logsumexp = torch.empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, output, logsumexp)
        return output


def live_tensors(also: list[Tensor]) -> dict[int, int]:
    """Bytes of each storage that Python can see, or that is in ``also``."""
    gc.collect()  # what other tests left in cycles may go at any moment, and come back elsewhere
    found = also + [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}


def kept_bytes(forward: Callable[[Tensor], Tensor], images: Tensor, precision: str) -> int:
    """Bytes a forward pass keeps alive for the backward pass."""
    before, saved = live_tensors([]), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        outputs = forward(images + 0.0)  # images of its own, which are counted
    after = live_tensors([*saved, outputs])
    return sum(size for storage, size in after.items() if storage not in before)


def masked_forward(shape: Shape, recompute: str) -> Callable[[Tensor], Tensor]:
    """Masked pre-training up to the loss of each image."""
    network = MaskedSwin(shape, (recompute,) * 4)

    def forward(images: Tensor) -> Tensor:
        hidden = torch.ones(len(images), 4, 4, dtype=torch.bool)
        return restoration_loss(network(images, hidden), (images, hidden))

    return forward


@pytest.mark.parametrize(
    ("variant", "precision", "recompute", "masked"),
    [
        ("swin_t", "bf16", "none", False),
        pytest.param("swin_t", "bf16", "none", True, marks=pytest.mark.slow),
        pytest.param("swin_t", "bf16", "full", False, marks=pytest.mark.slow),
        ("swin_t", "bf16", "selective_attention", False),
        pytest.param("swin_t", "bf16", "selective_mlp", False, marks=pytest.mark.slow),
        pytest.param("swin_t", "fp32", "none", False, marks=pytest.mark.slow),
        ("swinv2_t", "bf16", "none", False),
        pytest.param("swin_mlp_t_c24", "bf16", "none", False, marks=pytest.mark.slow),
        pytest.param("swin_t", "fp32", "full", False, marks=pytest.mark.slow),
        pytest.param("swin_t", "fp32", "full", True, marks=pytest.mark.slow),
        pytest.param("swinv2_t", "bf16", "full", False, marks=pytest.mark.slow),
        pytest.param("swinv2_t", "bf16", "selective_attention", False, marks=pytest.mark.slow),
        pytest.param("swinv2_t", "bf16", "selective_mlp", False, marks=pytest.mark.slow),
        pytest.param(
            "swin_mlp_t_c24", "bf16", "selective_attention", False, marks=pytest.mark.slow
        ),
        pytest.param("swin_t", "fp32", "selective_mlp", False, marks=pytest.mark.slow),
        pytest.param("swinv2_t", "fp32", "none", False, marks=pytest.mark.slow),
        pytest.param("swin_mlp_t_c24", "bf16", "full", False, marks=pytest.mark.slow),
        pytest.param("swin_mlp_t_c24", "fp32", "none", False, marks=pytest.mark.slow),
    ],
)
def test_activation_estimate_is_what_a_forward_pass_keeps(
    monkeypatch, precision, recompute, variant, masked
):
    attend, dtype = F.scaled_dot_product_attention, {"bf16": torch.bfloat16}.get(precision)

    def saving_attention(query, key, value, attn_mask, scale):
        cast = (t.to(dtype or torch.float32) for t in (query, key, value, attn_mask))
        return SavingAttention.apply(*cast, scale, attend)

    monkeypatch.setattr(F, "scaled_dot_product_attention", saving_attention)
    settings = {"embed_dim": 48, "image_size": 128, "window_size": 4, "num_classes": 3}
    if variant == "swin_mlp_t_c24":
        settings["heads"] = (3, 6, 12, 24)
    shape = shape_of(config(variant, **settings))
    if masked:
        shape = masked_shape(shape)
    forward = masked_forward(shape, recompute) if masked else Swin(shape, (recompute,) * 4)
    one, three = (kept_bytes(forward, torch.zeros(n, 3, 128, 128), precision) for n in (1, 3))
    measured = (three - one) / 2
    estimate = activation_bytes_per_image(shape, precision, (recompute,) * 4)
    # Beside what is kept, the estimate holds one recomputed part: what one more block of the first
    # stage keeps in addition when nothing is recomputed.
    if recompute != "none":
        estimate -= block_bytes(shape, precision, "none") - block_bytes(shape, precision, recompute)
    if recompute == "full":
        estimate -= block_bytes(shape, precision, recompute)
    assert measured == pytest.approx(estimate, rel=0.02)


def block_bytes(shape: Shape, precision: str, recompute: str) -> int:
    """What the estimate grows by with a shifted block of the first stage."""
    deeper, deepest = (replace(shape, depths=(depth, 2, 6, 2)) for depth in (3, 4))
    kinds = (recompute,) * 4
    more = activation_bytes_per_image(deepest, precision, kinds)
    return more - activation_bytes_per_image(deeper, precision, kinds)


@pytest.mark.parametrize("model", [config("swin_l"), config("swinv2_b", 256, 16)], ids=str)
def test_what_is_recomputed_orders_the_estimates(model):
    shape = shape_of(model)
    kinds = ("none", "selective_attention", "selective_mlp", "full", "full_offload")
    sizes = [activation_bytes_per_image(shape, "bf16", (kind,) * 4) for kind in kinds]
    assert max(sizes[1], sizes[2]) < sizes[0]
    assert sizes[4] < sizes[3] < min(sizes[1], sizes[2])
