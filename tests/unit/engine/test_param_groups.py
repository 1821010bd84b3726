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
