"""Every layout to every other and back, bit for bit; and each layout's own names and orders."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from tiny_weights import same, tiny_model, tiny_weights
from torch.nn import functional as F

from pretrain.convert.layouts import from_layout, recognize, to_layout
from pretrain.convert.names import DEPTH_MAX, LAYOUTS, is_derived, rules
from pretrain.models.build import build
from pretrain.models.layers import PatchMerging
from pretrain.models.variants import shape_of

RECORDED = Path(__file__).with_name("recorded")
SHAPE = shape_of(tiny_model())


def written(layout, seed=0):
    return to_layout(tiny_weights(seed), layout, "swin", SHAPE)


@pytest.mark.parametrize(("first", "second"), itertools.permutations(LAYOUTS, 2))
def test_every_ordered_pair_round_trips_bit_for_bit(first, second):
    there = recognize(written(first))
    assert (there.layout, there.family, there.unknown) == (first, "swin", ())
    other = to_layout(there.tensors, second, "swin", SHAPE)
    assert same(other, written(second))
    back = recognize(other)
    assert (back.layout, back.unknown) == (second, ())
    assert same(to_layout(back.tensors, first, "swin", SHAPE), written(first))


@pytest.mark.parametrize("family", ["swin", "swinv2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_name_stands_for_two_things(layout, family):
    for side in ("official", "other"):
        names = [name for rule in rules(layout, family) for name in getattr(rule, side) if name]
        assert len(names) == len(set(names))
    if rules(layout, family):
        official = {name for rule in rules(layout, family) for name in rule.official if name}
        assert f"layers.2.blocks.{DEPTH_MAX - 1}.attn.proj.weight" in official


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_cover_the_whole_network(layout):
    names = {name for rule in rules(layout, "swin") for name in rule.official}
    assert {name for name, _ in build(tiny_model()).named_parameters()} <= names


@pytest.mark.parametrize("layout", ["official", "timm", "torchvision", "huggingface"])
def test_names_and_shapes_are_those_recorded_from_the_library(layout):
    recorded = json.loads((RECORDED / f"{layout}.json").read_text())
    got = {name: list(tensor.shape) for name, tensor in written(layout).items()}
    assert got == recorded


@pytest.mark.parametrize("layout", ["timm", "torchvision"])
def test_v2_names_and_shapes_are_those_recorded_from_the_library(layout):
    recorded = json.loads((RECORDED / f"{layout}_v2.json").read_text())
    shape = {"variant": "swinv2_t", "window_size": 2}
    there = to_layout(tiny_weights(**shape), layout, "swinv2", shape_of(tiny_model(**shape)))
    assert {name: list(tensor.shape) for name, tensor in there.items()} == recorded


def test_mmdetection_merges_as_unfold_does():
    """The permuted weights in a merging by `torch.nn.Unfold` give what ours give."""
    generator = torch.Generator().manual_seed(1)
    merging = PatchMerging(12, post_norm=False).double()
    weights = {
        f"layers.0.downsample.{name}": torch.randn(
            value.shape, generator=generator, dtype=torch.float64
        )
        for name, value in merging.named_parameters()
    }
    merging.load_state_dict(
        {name.removeprefix("layers.0.downsample."): value for name, value in weights.items()}
    )
    there = to_layout(weights, "mmdetection", "swin", SHAPE)
    prefix = "backbone.stages.0.downsample."
    maps = torch.randn(2, 4, 6, 12, generator=generator, dtype=torch.float64)
    unfolded = F.unfold(maps.permute(0, 3, 1, 2), kernel_size=2, stride=2).transpose(1, 2)
    normed = F.layer_norm(
        unfolded, (48,), there[f"{prefix}norm.weight"], there[f"{prefix}norm.bias"]
    )
    theirs = normed @ there[f"{prefix}reduction.weight"].T
    torch.testing.assert_close(theirs.view(2, 2, 3, 24), merging(maps), rtol=0, atol=1e-12)
    assert not torch.equal(
        there[f"{prefix}reduction.weight"], weights["layers.0.downsample.reduction.weight"]
    )


def test_derived_buffers_have_each_layouts_shape():
    official, torchvision = written("official"), written("torchvision")
    assert official["layers.0.blocks.0.attn.relative_position_index"].shape == (4, 4)
    assert torchvision["features.1.0.attn.relative_position_index"].shape == (16,)
    assert official["layers.0.blocks.1.attn_mask"].shape == (64, 4, 4)
    assert "layers.0.blocks.0.attn_mask" not in official
    assert "layers.3.blocks.1.attn_mask" not in official  # its map is a single window
    assert not any(is_derived(name) for name in written("timm"))


def test_v2_keeps_its_biases_where_torchvision_joins_them():
    weights = {
        "layers.0.blocks.0.attn.q_bias": torch.arange(12.0),
        "layers.0.blocks.0.attn.v_bias": torch.arange(12.0) + 50,
    }
    rule = next(rule for rule in rules("torchvision", "swinv2") if len(rule.official) == 3)
    assert rule.other == ("features.1.0.attn.qkv.bias",)
    there = {
        name: tensor
        for name, tensor in to_layout(weights, "torchvision", "swinv2", SHAPE).items()
        if not is_derived(name)
    }
    joined = there["features.1.0.attn.qkv.bias"]
    assert torch.equal(joined[12:24], torch.zeros(12))
    assert same(from_layout(there, "torchvision", "swinv2").tensors, weights)


def test_heads_may_be_absent():
    weights = {n: t for n, t in tiny_weights().items() if not n.startswith("head")}
    for layout in LAYOUTS:
        there = recognize(to_layout(weights, layout, "swin", SHAPE))
        assert (there.layout, there.unknown) == (layout, ())
        assert same(there.tensors, weights)
