"""Top-1, top-5 and loss of images: what one is worth, and the means over all."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.errors import DataError

TOP = 5
LOSS_UNIT = 2.0**-28
"""Nats; far finer than what a float32 loss can tell."""


class EvalBatch(Protocol):
    """What evaluation needs of a batch; B images on the CPU."""

    @property
    def images(self) -> Tensor:
        """uint8 [B, 3, H, W], 0 to 255."""
        ...

    @property
    def labels(self) -> Tensor:
        """int64 [B]; of no meaning where not valid."""
        ...

    @property
    def sample_ids(self) -> Tensor:
        """int64 [B], in manifest order; -1 where there is no image."""
        ...

    @property
    def valid(self) -> Tensor:
        """Which rows are images, bool [B]; False is padding."""
        ...


@dataclass(frozen=True)
class EvalResult:
    """Means over all images of a split.

    Attributes:
        images: images counted, over all ranks.
        top1_fraction: share whose label has the highest logit.
        top5_fraction: share whose label is among the five highest; 1 for fewer than six classes.
        loss: mean cross-entropy in nats; NaN if any image's is.
    """

    images: int
    top1_fraction: float
    top5_fraction: float
    loss: float

    def metrics(self, prefix: str = "eval/") -> dict[str, float]:
        """The result under its declared names, which begin as `evaluation_prefix` says."""
        return {
            f"{prefix}images": float(self.images),
            f"{prefix}top1_fraction": self.top1_fraction,
            f"{prefix}top5_fraction": self.top5_fraction,
            f"{prefix}loss": self.loss,
        }


def places(logits: Tensor, labels: Tensor) -> Tensor:
    """Where each label stands when classes are sorted by falling logit; pure, no host sync.

    Equal logits are sorted by index, so ties are decided alike on every device.

    Args:
        logits: fp32 [B, Y].
        labels: int64 [B], 0 to Y - 1.

    Returns:
        int64 [B], from 0; Y, behind all classes, for a row that holds a NaN.
    """
    own = logits.gather(1, labels[:, None])  # [B, 1]
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]  # [B, Y]
    place = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return torch.where(logits.isnan().any(1), logits.shape[1], place)


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row, as whole multiples of `LOSS_UNIT`.

    Sums of them are exact in float64 up to 33 million nats, so they do not depend on the order, and
    thereby on the number of ranks.

    Args:
        logits: fp32 [B, Y].
        labels: int64 [B], 0 to Y - 1.

    Returns:
        float64 [B], nats.
    """
    exact = F.cross_entropy(logits.float(), labels, reduction="none").double()
    return (exact / LOSS_UNIT).round() * LOSS_UNIT


def result(images: float, top1: float, top5: float, loss_sum: float) -> EvalResult:
    """Turn counts over all ranks into means.

    Raises:
        DataError: there is no image.
    """
    if images == 0:
        raise DataError("evaluation: expected at least one image, got none; check data.eval_split")
    return EvalResult(int(images), top1 / images, top5 / images, loss_sum / images)


def check_labels(batch: EvalBatch, num_classes: int) -> None:
    """Refuse labels that the model has no class for; looks on the CPU, no host sync.

    Raises:
        DataError: naming the labels' range.
    """
    labels = batch.labels[batch.valid]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DataError(
            f"evaluation: labels run from {int(labels.min())} to {int(labels.max())}, but the "
            f"model has {num_classes} classes; the split was made for another class list"
        )
