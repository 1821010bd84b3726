"""Ranges round the parts of a network, and what is computed in them."""

from collections import Counter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pretrain.config.schema import ModelConfig
from pretrain.models.build import build, compile_blocks
from pretrain.models.masked import build_masked
from pretrain.profile.ranges import ranges

SMALL = ModelConfig(
    variant="swin_t", image_size=32, window_size=4, num_classes=4, embed_dim=8,
    depths=(1, 1, 2, 1), heads=(1, 1, 2, 2), drop_path=0.1,
)  # fmt: skip


def names(model: torch.nn.Module, *inputs: torch.Tensor) -> Counter[str]:
    """Ranges that a forward and a backward pass go through, with how often."""
    with ranges(model), profile(activities=[ProfilerActivity.CPU]) as recorded:  # pyright: ignore
        model(*inputs).sum().backward()
    events = recorded.events()
    assert events is not None
    return Counter(event.name for event in events if event.is_user_annotation)


def test_every_part_is_named_once_a_pass():
    found = names(build(SMALL), torch.randn(2, 3, 32, 32))
    parts = ("", " / attention", " / position bias", " / mlp", " / norm")
    blocks = ("1 / block 0", "2 / block 0", "3 / block 0", "3 / block 1", "4 / block 0")
    for block in blocks:
        for part in parts:
            assert found.pop(f"stage {block}{part}") == (2 if part == " / norm" else 1)
    others = {f"stage {number}" for number in (1, 2, 3, 4)}
    others |= {f"patch merging {number}" for number in (1, 2, 3)}
    assert found == Counter([*others, "patch embedding", "head / norm", "head"])


@pytest.mark.parametrize("kind", ["full", "selective_attention", "selective_mlp"])
def test_what_is_computed_again_is_named_again(kind):
    found = names(build(SMALL, (kind, "none", "none", "none")), torch.randn(2, 3, 32, 32))
    assert found["stage 1 / block 0 / attention"] == (1 if kind == "selective_mlp" else 2)
    assert found["stage 1 / block 0 / mlp"] == (1 if kind == "selective_attention" else 2)
    assert found["stage 2 / block 0 / attention"] == 1


def test_a_masked_networks_decoder_is_named():
    masked = SMALL.model_copy(update={"image_size": 64})
    hidden = torch.zeros(2, 2, 2, dtype=torch.bool)
    found = names(build_masked(masked), torch.randn(2, 3, 64, 64), hidden)
    assert found["decoder"] == found["stage 4"] == found["patch embedding"] == 1


def test_other_families_have_ranges_too():
    v2 = SMALL.model_copy(update={"variant": "swinv2_t"})
    assert names(build(v2), torch.randn(1, 3, 32, 32))["stage 3 / block 1 / position bias"] == 1
    mlp = SMALL.model_copy(update={"variant": "swin_mlp_t_c12"})
    assert names(build(mlp), torch.randn(1, 3, 32, 32))["stage 3 / block 1 / attention"] == 1


@pytest.mark.slow
def test_a_compiled_block_is_one_range():
    model = build(SMALL).eval()
    compile_blocks(model, backend="eager")
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    found = names(model, images)
    assert found["stage 3 / block 1"] == 1
    assert not any("attention" in name for name in found)
    assert torch.equal(model(images), before)


def test_nothing_is_left_behind_and_nothing_is_changed():
    model = build(SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    plain = model(images)
    with ranges(model):
        assert torch.equal(model(images), plain)
        assert "forward" in vars(model.head)
    for module in model.modules():
        assert not {"forward", "position_bias"} & vars(module).keys()
