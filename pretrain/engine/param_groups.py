"""Which parameters decay: matrices do; norms, biases and position tables do not."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from pretrain.errors import EngineError

NO_DECAY_ENDINGS = ("relative_position_bias_table", "absolute_pos_embed")
"""Tables of positions: two-dimensional or more, and yet undecayed in every published recipe."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether weight decay applies: not to 1-D parameters, biases and position tables."""
    return not (
        parameter.ndim <= 1 or name.endswith("bias") or name.rsplit(".", 1)[-1] in NO_DECAY_ENDINGS
    )


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Split parameters into the optimizer's decayed and undecayed groups, empty ones left out.

    Raises:
        EngineError: a frozen parameter; its state would be missing from every checkpoint.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            raise EngineError(
                f"parameter {name}: expected a trained parameter, got a frozen one; "
                "make it a buffer or train it"
            )
        (decayed if decays(name, parameter) else undecayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "name": "decayed"},
        {"params": undecayed, "weight_decay": 0.0, "name": "undecayed"},
    ]
    return [group for group in groups if group["params"]]
