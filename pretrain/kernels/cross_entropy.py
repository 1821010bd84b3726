"""Cross-entropy with soft targets that never writes the logarithms of all classes' chances."""

from typing import Any

import torch
from torch import Tensor

BLOCK = 2048
"""Classes that a program takes at a time."""
_CONSTANTS: dict[str, Any] = {"BLOCK": BLOCK}


def fused_soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each image in fp32; targets get no gradient.

    Args:
        logits: [B, Y], any float type.
        targets: [B, Y] float, rows that sum to 1 (or to anything).

    Returns:
        fp32 [B].
    """
    return _forward(logits, targets)[0]


@torch.library.custom_op("swin_pretrain::soft_target_cross_entropy", mutates_args=())
def _forward(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, logarithm of the sum of exponentials, and sum of the targets of each row, fp32 [B]."""
    from pretrain.kernels import cross_entropy_programs

    logits, targets = logits.contiguous(), targets.contiguous()
    made = _of_rows(logits)
    rows, classes = logits.shape
    cross_entropy_programs.forward[(rows,)](logits, targets, *made, classes, **_CONSTANTS)
    return made


def _of_rows(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = len(logits)
    loss, normalizer, weight = (logits.new_empty(rows, dtype=torch.float32) for _ in range(3))
    return loss, normalizer, weight


@_forward.register_fake
def _(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _of_rows(logits)


@torch.library.custom_op("swin_pretrain::soft_target_cross_entropy_backward", mutates_args=())
def _backward(
    logits: Tensor, targets: Tensor, normalizer: Tensor, weight: Tensor, loss_grad: Tensor
) -> Tensor:
    from pretrain.kernels import cross_entropy_programs

    logits, targets, loss_grad = logits.contiguous(), targets.contiguous(), loss_grad.contiguous()
    logits_grad = torch.empty_like(logits)
    rows, classes = logits.shape
    cross_entropy_programs.backward[(rows, -(-classes // BLOCK))](
        logits, targets, normalizer, weight, loss_grad, logits_grad, classes, **_CONSTANTS
    )
    return logits_grad


@_backward.register_fake
def _(
    logits: Tensor, targets: Tensor, normalizer: Tensor, weight: Tensor, loss_grad: Tensor
) -> Tensor:
    return torch.empty_like(logits.contiguous())


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, normalizer, weight = output
    ctx.save_for_backward(*inputs, normalizer, weight)


def _differentiate(ctx: Any, loss_grad: Tensor, *_: Tensor) -> tuple[Tensor, None]:
    return _backward(*ctx.saved_tensors, loss_grad), None


_forward.register_autograd(_differentiate, setup_context=_keep)
