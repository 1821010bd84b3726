"""The optimizer's parameter groups: what decays and what does not."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from pretrain.errors import EngineError


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], weight_decay: float, undecayed: Collection[str]
) -> list[dict[str, Any]]:
    """Split parameters into the optimizer's decayed and undecayed groups, empty ones left out.

    Args:
        parameters: every parameter of the model by name.
        weight_decay: of the decayed group.
        undecayed: names without weight decay, as the model says.

    Raises:
        EngineError: a frozen parameter, whose state would be missing from every checkpoint; or an
            undecayed name that the model does not have.
    """
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if frozen:
        raise EngineError(
            f"parameter {frozen[0]}: expected a trained parameter, got a frozen one; "
            "make it a buffer or train it"
        )
    unknown = sorted(set(undecayed) - parameters.keys())
    if unknown:
        raise EngineError(f"undecayed: no parameter is named {unknown[0]}")
    names = {"decayed": [name for name in parameters if name not in undecayed]}
    names["undecayed"] = [name for name in parameters if name in undecayed]
    decay = {"decayed": weight_decay, "undecayed": 0.0}
    return [
        {
            "params": [parameters[name] for name in members],
            "weight_decay": decay[group],
            "name": group,
        }
        for group, members in names.items()
        if members
    ]
