"""What the outputs of a classifier are held against: soft targets, and the class they mean most."""

import torch.nn.functional as F
from torch import Tensor


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each image in fp32.

    Args:
        logits: [B, Y], any float type.
        targets: [B, Y] float, rows that sum to 1.

    Returns:
        fp32 [B].
    """
    return -(targets.float() * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)


def hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return which images' highest logit is of the class that weighs most in their target.

    Of equal logits, and of equal weights, the class with the lowest index counts.

    Args:
        logits: [B, Y], any float type.
        targets: [B, Y] float.

    Returns:
        bool [B].
    """
    return logits.argmax(dim=-1) == targets.argmax(dim=-1)
