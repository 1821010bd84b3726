"""Layer norm joined to the residual sum and the drop path beside it: one pass over each map.

Plain torch reads and writes the fp32 residual stream for the product with drop path's factor, the
sum, the norm and the rounding for the next product, one after the other.
"""

from typing import Any

import torch
from torch import Tensor

from pretrain.kernels.grid import programs

_TILE_ELEMENTS = 2048
_PROGRAMS_PER_PROCESSOR = 4


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
) -> Tensor:
    """Normalise maps over their channels, computed in fp32 and rounded once.

    Args:
        x: [B, ..., C].
        weight: fp32 [C].
        bias: fp32 [C].
        eps: added to the variance.
        out_dtype: type of the result.
    """
    return _forward(x, None, None, weight, bias, eps, out_dtype, False)[1]


def add_layer_norm(
    x: Tensor,
    branch: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The residual sum and its layer norm.

    Args:
        x: the residual stream, [B, ..., C].
        branch: what is added, of the same shape in any float type.
        scale: fp32 factor of each image's branch, B elements, or None.
        weight: fp32 [C].
        bias: fp32 [C].
        eps: added to the variance.
        out_dtype: type of the norm.

    Returns:
        x + branch · scale in the type of ``x``, and its norm in ``out_dtype``.
    """
    total, normal, _ = _forward(x, branch, scale, weight, bias, eps, out_dtype, False)
    return total, normal


def add_normalized(
    x: Tensor, branch: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """The residual sum with a normalised branch: x + norm(branch) · scale, as `add_layer_norm`."""
    return _forward(x, branch, scale, weight, bias, eps, x.dtype, True)[0]


@torch.library.custom_op("swin_pretrain::residual_layer_norm", mutates_args=())
def _forward(
    x: Tensor,
    branch: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    post: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, the norm, and 1 / the deviation of each row; those that there are none of empty."""
    from pretrain.kernels import layer_norm_programs

    x = x.contiguous()
    branch = None if branch is None else branch.contiguous()
    total, normal, inverse_deviation = _made(x, branch, out_dtype, post)
    rows, block_rows, constants = _tiles(x, branch, scale, post)
    constants["EPS"] = eps
    layer_norm_programs.forward[(-(-rows // block_rows),)](
        x,
        x if branch is None else branch,
        weight if scale is None else scale.contiguous(),
        weight,
        bias,
        total,
        normal,
        inverse_deviation,
        rows,
        rows // len(x),
        **constants,
    )
    return total, normal, inverse_deviation


def _made(
    x: Tensor, branch: Tensor | None, out_dtype: torch.dtype, post: bool
) -> tuple[Tensor, Tensor, Tensor]:
    total = x.new_empty(0) if branch is None else torch.empty_like(x)
    normal = x.new_empty(0) if post else torch.empty_like(x, dtype=out_dtype)
    return total, normal, x.new_empty(x.shape[:-1], dtype=torch.float32)


@_forward.register_fake
def _(
    x: Tensor,
    branch: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    post: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _made(x.contiguous(), branch, out_dtype, post)


@torch.library.custom_op("swin_pretrain::residual_layer_norm_backward", mutates_args=())
def _backward(
    normed: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    inverse_deviation: Tensor,
    total_grad: Tensor | None,
    normal_grad: Tensor | None,
    x_dtype: torch.dtype,
    branch_dtype: torch.dtype | None,
    post: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (empty with ``post``: the sum's own), branch, weight and bias."""
    from pretrain.kernels import layer_norm_programs

    total_grad, normal_grad = (
        None if grad is None else grad.contiguous() for grad in (total_grad, normal_grad)
    )
    if normal_grad is None and not post:  # the norm was not used
        normal_grad = torch.zeros_like(normed)
    x_grad, branch_grad = _grads(normed, x_dtype, branch_dtype, post)
    rows, block_rows, constants = _tiles(
        normed, None if branch_dtype is None else branch_grad, scale, post
    )
    constants["ADDED"] = total_grad is not None
    groups = min(-(-rows // block_rows), programs(normed.device, _PROGRAMS_PER_PROCESSOR))
    sums = normed.new_empty(2, groups, normed.shape[-1], dtype=torch.float32)
    layer_norm_programs.backward[(groups,)](
        normed,
        weight if scale is None else scale.contiguous(),
        weight,
        inverse_deviation,
        normed if total_grad is None else total_grad,
        normed if normal_grad is None else normal_grad,
        x_grad,
        branch_grad,
        sums[0],
        sums[1],
        rows,
        rows // len(normed),
        groups,
        **constants,
    )
    weight_grad, bias_grad = sums.sum(1)
    return x_grad, branch_grad, weight_grad, bias_grad.clone()


def _grads(
    normed: Tensor, x_dtype: torch.dtype, branch_dtype: torch.dtype | None, post: bool
) -> tuple[Tensor, Tensor]:
    x_grad = normed.new_empty(0) if post else torch.empty_like(normed, dtype=x_dtype)
    if branch_dtype is None:
        return x_grad, normed.new_empty(0)
    return x_grad, torch.empty_like(normed, dtype=branch_dtype)


@_backward.register_fake
def _(
    normed: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    inverse_deviation: Tensor,
    total_grad: Tensor | None,
    normal_grad: Tensor | None,
    x_dtype: torch.dtype,
    branch_dtype: torch.dtype | None,
    post: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_parameters = torch.empty_like(weight), torch.empty_like(weight)
    return *_grads(normed, x_dtype, branch_dtype, post), *of_parameters


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, branch, scale, weight, _, _, _, post = inputs
    total, _, inverse_deviation = output
    normed = branch if post else x if branch is None else total
    ctx.save_for_backward(normed, scale, weight, inverse_deviation)
    ctx.x_dtype, ctx.branch_dtype = x.dtype, None if branch is None else branch.dtype
    ctx.post = post
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, total_grad: Tensor | None, normal_grad: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    normed, scale, weight, inverse_deviation = ctx.saved_tensors
    total_grad = None if ctx.branch_dtype is None else total_grad
    x_grad, branch_grad, weight_grad, bias_grad = _backward(
        normed.contiguous(),
        scale,
        weight,
        inverse_deviation,
        total_grad,
        None if ctx.post else normal_grad,
        ctx.x_dtype,
        ctx.branch_dtype,
        ctx.post,
    )
    x_grad = total_grad if ctx.post else x_grad
    branch_grad = None if ctx.branch_dtype is None else branch_grad
    return x_grad, branch_grad, None, weight_grad, bias_grad, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _tiles(
    x: Tensor, branch: Tensor | None, scale: Tensor | None, post: bool
) -> tuple[int, int, dict[str, Any]]:
    """Rows, rows of a tile, and the constants that forward and backward share."""
    channels = x.shape[-1]
    constants = program_constants(
        channels, branched=branch is not None, scaled=scale is not None, post=post
    )
    return x.numel() // channels, constants["BLOCK_R"], constants


def program_constants(channels: int, *, branched: bool, scaled: bool, post: bool) -> dict[str, Any]:
    """What forward and backward are compiled for, with what each has of its own."""
    import triton

    block_channels = triton.next_power_of_2(channels)
    return {
        "C": channels,
        "BLOCK_C": block_channels,
        "BLOCK_R": max(1, _TILE_ELEMENTS // block_channels),
        "BRANCHED": branched,
        "SCALED": scaled,
        "POST": post,
    }
