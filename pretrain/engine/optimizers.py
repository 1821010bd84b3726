"""The optimizers to choose from, and how each of them counts its steps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pretrain.config.engine import OptimConfig
from pretrain.engine.lamb import Lamb
from pretrain.engine.nvidia_apex import import_from_apex
from pretrain.errors import EngineError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What every optimizer here calls its running means of the gradient and of its square."""


def make_optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimizer that the config asks for.

    Args:
        groups: of `parameter_groups`.
        optim: the config's section; that the engine's state lies where its implementation works
            was checked with the config.

    Raises:
        EngineError: apex is asked for and not there, or DeepSpeed's CPU Adam cannot be built.
    """
    numbers: dict[str, Any] = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps}
    if optim.kind == "lamb":
        return Lamb(groups, **numbers)
    match optim.implementation:
        case "torch":
            return torch.optim.AdamW(groups, fused=True, **numbers)
        case "apex":
            module = import_from_apex("apex.optimizers", "amp_C", "optim.implementation")
            return module.FusedAdam(groups, adam_w_mode=True, **numbers)
        case "deepspeed_cpu":
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            try:
                return DeepSpeedCPUAdam(groups, adamw_mode=True, **numbers)
            except (RuntimeError, OSError, ImportError) as error:
                raise EngineError(
                    "optim.implementation: deepspeed_cpu is compiled at the first start, and that "
                    f"failed: {_cause(error)}; it needs a C++ compiler and ninja, or give "
                    "optim.implementation=torch"
                ) from error


def adam_state(optimizer: torch.optim.Optimizer, flat: Tensor) -> dict[str, Any]:
    """Return the optimizer's state of a flat, made as its own first step would make it."""
    state = optimizer.state[flat]
    if not state:
        if _counts_with(optimizer) == "tensor":
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
        elif _counts_with(optimizer) == "number":
            state["step"] = 0
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(flat, requires_grad=False)
    return state


def set_step(optimizer: torch.optim.Optimizer, flats: Sequence[Tensor], step: int) -> None:
    """Tell the optimizer how many steps its moments have seen (their bias correction)."""
    counts_with = _counts_with(optimizer)
    for flat in flats:
        state = adam_state(optimizer, flat)
        if counts_with == "tensor":
            state["step"].fill_(step)
        elif counts_with == "number":
            state["step"] = step
    if counts_with == "group":
        for group in optimizer.param_groups:
            group["step"] = step


def _counts_with(optimizer: torch.optim.Optimizer) -> str:
    """Torch counts in a tensor of each state, DeepSpeed in a number there, apex in the group."""
    names = {"DeepSpeedCPUAdam": "number", "FusedAdam": "group"}
    return names.get(type(optimizer).__name__, "tensor")


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__
