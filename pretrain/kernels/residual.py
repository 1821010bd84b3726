"""The residual sum with drop path's factor, in one pass over the maps."""

from typing import Any

import torch
from torch import Tensor

BLOCK = 1024
"""Elements of a program."""


def add_scaled(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """X + branch · scale, computed in fp32.

    Args:
        x: the residual stream, [B, ...].
        branch: what is added, of the same shape in any float type.
        scale: fp32 factor of each image's branch, B elements, or None.

    Returns:
        the sum in the type of ``x``.
    """
    return _sum(x, branch, scale, x.dtype)


@torch.library.custom_op("swin_pretrain::add_scaled", mutates_args=())
def _sum(x: Tensor | None, branch: Tensor, scale: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """The sum; without ``x`` the product alone, which is what the branch's gradient is."""
    from pretrain.kernels.layer_norm_programs import add_scaled as program

    branch = branch.contiguous()
    total = torch.empty_like(branch, dtype=out_dtype)
    elements = branch.numel()
    constants: dict[str, Any] = {
        "BLOCK": BLOCK,
        "ADDED": x is not None,
        "SCALED": scale is not None,
    }
    program[(-(-elements // BLOCK),)](
        branch if x is None else x.contiguous(),
        branch,
        branch if scale is None else scale.contiguous(),
        total,
        elements,
        elements // len(branch),
        **constants,
    )
    return total


@_sum.register_fake
def _(x: Tensor | None, branch: Tensor, scale: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    return torch.empty_like(branch.contiguous(), dtype=out_dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, branch, scale, _ = inputs
    ctx.save_for_backward(scale)
    ctx.branch_dtype = branch.dtype


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (scale,) = ctx.saved_tensors
    unchanged = scale is None and grad.dtype == ctx.branch_dtype
    return grad, grad if unchanged else _sum(None, grad, scale, ctx.branch_dtype), None, None


_sum.register_autograd(_differentiate, setup_context=_keep)
