import pytest
import torch
from torch import nn

from pretrain.engine.param_groups import decays, parameter_groups
from pretrain.errors import EngineError


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("patch_embed.proj.weight", (96, 3, 4, 4), True),
        ("layers.0.blocks.1.attn.qkv.weight", (288, 96), True),
        ("layers.0.downsample.reduction.weight", (192, 384), True),
        ("head.weight", (1000, 768), True),
        ("layers.0.blocks.1.attn.qkv.bias", (288,), False),
        ("layers.0.blocks.1.norm1.weight", (96,), False),
        ("layers.0.blocks.1.attn.relative_position_bias_table", (169, 3), False),
        ("absolute_pos_embed", (1, 3136, 96), False),
        ("odd.bias", (2, 2), False),
    ],
)
def test_published_rule(name, shape, expected):
    assert decays(name, parameter(*shape)) is expected


def test_every_parameter_is_in_one_group():
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.LayerNorm(4), nn.Linear(4, 2))
    decayed, undecayed = parameter_groups(model.named_parameters(), 0.05)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.05, 0.0)
    ids = [id(parameter) for parameter in [*decayed["params"], *undecayed["params"]]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 2, 2), (2, 4)]


def test_empty_groups_are_left_out():
    groups = parameter_groups([("norm.weight", parameter(3))], 0.05)
    assert [group["name"] for group in groups] == ["undecayed"]


def test_frozen_parameters_are_refused():
    frozen = parameter(2, 2).requires_grad_(False)
    with pytest.raises(EngineError, match=r"parameter head\.weight"):
        parameter_groups([("head.weight", frozen)], 0.05)
