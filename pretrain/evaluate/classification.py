"""Top-1, top-5 and loss of a classifier, counted exactly: every image once, padding never."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain import dist
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
        """The result under its declared names; those of a probe begin with ``eval/probe_``."""
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


def count(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Count one batch; pure, no host sync. A row that holds a NaN is wrong.

    Args:
        logits: fp32 [B, Y].
        labels: int64 [B], 0 to Y - 1 where valid.
        valid: bool [B]; other rows count nothing, whatever they hold.

    Returns:
        float64 [4] on the logits' device: images, right in the first, right in the first five, sum
        of the losses in nats.
    """
    labels = torch.where(valid, labels, 0)
    place = torch.where(valid, places(logits, labels), logits.shape[1])
    # With fewer classes than five, the place of a wrong row would pass for one of the first five.
    right = place < logits.shape[1]
    return torch.stack(
        (
            valid.sum().double(),
            (right & (place < 1)).sum().double(),
            (right & (place < TOP)).sum().double(),
            torch.where(valid, losses(logits, labels), 0.0).sum(),
        )
    )


def result(images: float, top1: float, top5: float, loss_sum: float) -> EvalResult:
    """Turn counts over all ranks into means.

    Raises:
        DataError: there is no image.
    """
    if images == 0:
        raise DataError("evaluation: expected at least one image, got none; check data.eval_split")
    return EvalResult(int(images), top1 / images, top5 / images, loss_sum / images)


def evaluate(
    logits_of: Callable[[Tensor], Tensor],
    batches: Iterable[EvalBatch],
    prepare: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
) -> EvalResult:
    """Evaluate a classifier over this and all other ranks' batches.

    **Every rank** calls it, with the same number of batches where ``logits_of`` communicates. One
    host sync and one collective, at the end.

    Args:
        logits_of: float images [B, 3, H, W] on ``device`` to fp32 logits [B, Y]; no gradients.
        batches: this rank's share; over all ranks every image is valid exactly once.
        prepare: uint8 images on ``device`` to normalised float images.
        device: where to compute.

    Returns:
        The same result on every rank.

    Raises:
        DataError: no image at all, or a label outside the model's classes.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in batches:
        logits = logits_of(prepare(batch.images.to(device, non_blocking=True)))
        check_labels(batch, logits.shape[1])
        labels = batch.labels.to(device, non_blocking=True)
        sums += count(logits, labels, batch.valid.to(device, non_blocking=True))
    return result(*dist.sum_across_ranks(sums.tolist()))


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
