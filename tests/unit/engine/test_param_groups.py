"""What decays and what does not, as the model says."""

import pytest
from torch import nn

from pretrain.engine.param_groups import parameter_groups
from pretrain.errors import EngineError


def small() -> dict[str, nn.Parameter]:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.LayerNorm(4), nn.Linear(4, 2))
    return dict(model.named_parameters())


def test_every_parameter_is_in_one_group():
    parameters = small()
    undecayed = {"0.bias", "1.weight", "1.bias", "2.bias"}
    groups = parameter_groups(parameters, 0.05, undecayed)
    assert [(group["name"], group["weight_decay"]) for group in groups] == [
        ("decayed", 0.05),
        ("undecayed", 0.0),
    ]
    names = {id(parameter): name for name, parameter in parameters.items()}
    assert [names[id(p)] for p in groups[0]["params"]] == ["0.weight", "2.weight"]
    assert {names[id(p)] for p in groups[1]["params"]} == undecayed


def test_empty_groups_are_left_out():
    parameters = small()
    assert [group["name"] for group in parameter_groups(parameters, 0.05, set())] == ["decayed"]
    assert [group["name"] for group in parameter_groups(parameters, 0.05, set(parameters))] == [
        "undecayed"
    ]


def test_frozen_parameters_and_unknown_names_are_refused():
    parameters = small()
    with pytest.raises(EngineError, match=r"no parameter is named head\.bias"):
        parameter_groups(parameters, 0.05, {"head.bias"})
    parameters["2.weight"].requires_grad_(False)
    with pytest.raises(EngineError, match=r"parameter 2\.weight: expected a trained"):
        parameter_groups(parameters, 0.05, set())


def test_without_layer_decay_every_group_has_the_full_rate():
    groups = parameter_groups(small(), 0.05, {"0.bias"}, 1.0, {"0.weight": 0})
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0]


def test_layers_have_groups_of_their_own_with_falling_rates():
    parameters = small()
    undecayed = {"0.bias", "1.weight", "1.bias", "2.bias"}
    depths = {name: 3 * int(name[0]) for name in parameters}  # layers 0, 3 and 6
    groups = parameter_groups(parameters, 0.05, undecayed, 0.5, depths)
    assert [(g["name"], g["weight_decay"], g["lr_scale"]) for g in groups] == [
        ("layer 0 decayed", 0.05, 0.5**6),
        ("layer 0 undecayed", 0.0, 0.5**6),
        ("layer 3 undecayed", 0.0, 0.5**3),
        ("layer 6 decayed", 0.05, 1.0),
        ("layer 6 undecayed", 0.0, 1.0),
    ]
    assert sum(len(group["params"]) for group in groups) == len(parameters)


def test_a_parameter_without_a_depth_is_refused():
    with pytest.raises(EngineError, match=r"no depth for parameter 2\.bias; give optim\.layer_dec"):
        parameter_groups(small(), 0.05, set(), 0.5, dict.fromkeys(list(small())[:-1], 0))
