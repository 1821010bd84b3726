"""Everything that is counted of one split: accuracy, by class, against ReaL labels, confusions."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain import dist
from pretrain.evaluate.classes import LEFT_OUT, ClassMap
from pretrain.evaluate.classification import (
    TOP,
    EvalBatch,
    EvalResult,
    check_labels,
    losses,
    places,
    result,
)


@dataclass(frozen=True)
class ClassCount:
    """Images of one class, how many were right in the first place and in the first five."""

    images: int
    top1: int
    top5: int


@dataclass(frozen=True)
class Confusion:
    """Images of the class ``label`` that were taken for ``predicted``; positions of classes."""

    label: int
    predicted: int
    images: int


@dataclass(frozen=True)
class RealResult:
    """Accuracy against ReaL labels, over the images that have any."""

    images: int
    top1_fraction: float
    top5_fraction: float


@dataclass(frozen=True)
class Tallied:
    """What came of a split, over all ranks.

    Attributes:
        overall: the means.
        by_class: per class evaluated, in their order.
        confusions: wrong answers by pair, the most frequent first, then in the order of classes.
        real: against ReaL labels; None without them.
    """

    overall: EvalResult
    by_class: tuple[ClassCount, ...]
    confusions: tuple[Confusion, ...]
    real: RealResult | None


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for something else; classes by position."""

    sample_id: int
    label: int
    predicted: int


@dataclass(frozen=True)
class MappedBatch:
    """A batch whose labels are positions among the classes evaluated."""

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    valid: Tensor


class Mapping:
    """Puts a model's logits and a set's labels in terms of the classes evaluated.

    Args:
        classes: which they are.
        device: where the logits are.
    """

    def __init__(self, classes: ClassMap, device: torch.device):
        self.num_classes = len(classes.columns)
        self._columns = torch.tensor(classes.columns, device=device)
        self._positions = torch.tensor(classes.positions)

    def logits(self, logits: Tensor) -> Tensor:
        """Pick the classes' columns: [B, rows of the head] to [B, Y]."""
        return logits[:, self._columns]

    def batch(self, batch: EvalBatch) -> MappedBatch:
        """Translate labels; images of classes left out become padding. On the CPU.

        Raises:
            DataError: a label outside the set's classes.
        """
        check_labels(batch, len(self._positions))
        labels = self._positions[torch.where(batch.valid, batch.labels, 0)]
        valid = batch.valid & (labels != LEFT_OUT)
        return MappedBatch(batch.images, labels, batch.sample_ids, valid)


class Tally:
    """Counts batches on the device and adds up over ranks at the end, all in whole numbers.

    Args:
        num_classes: Y, classes evaluated.
        device: where the logits are.
        real_labels: by sample id the right answers, see `pretrain.evaluate.real_labels`.
    """

    def __init__(
        self, num_classes: int, device: torch.device, real_labels: list[list[int]] | None = None
    ):
        self._num_classes = num_classes
        self._by_class = torch.zeros(num_classes, 3, dtype=torch.float64, device=device)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._real_sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._wrong: list[Tensor] = []
        self._wrong_ids: list[Tensor] = []
        self._real = None if real_labels is None else torch.tensor(real_labels, device=device)

    def add(self, logits: Tensor, labels: Tensor, valid: Tensor, sample_ids: Tensor) -> None:
        """Count one batch; no host sync.

        Args:
            logits: fp32 [B, Y].
            labels: int64 [B], 0 to Y - 1 where valid.
            valid: bool [B]; other rows count nothing, whatever they hold.
            sample_ids: int64 [B], in manifest order; -1 where there is no image.
        """
        labels = torch.where(valid, labels, 0)
        place = places(logits, labels)
        counted = torch.stack((valid, valid & self._first(place, 1), valid & self._first(place)), 1)
        self._by_class.index_add_(0, labels, counted.double())
        self._loss_sum += torch.where(valid, losses(logits, labels), 0.0).sum()
        # A NaN predicts nothing: such a row is wrong without a class it was taken for.
        wrong = valid & (place > 0) & (place < self._num_classes)
        pairs = labels * self._num_classes + logits.argmax(1)
        self._wrong.append(torch.where(wrong, pairs, -1))
        self._wrong_ids.append(sample_ids)
        if self._real is not None:
            self._add_real(logits, sample_ids)

    def _add_real(self, logits: Tensor, sample_ids: Tensor) -> None:
        assert self._real is not None  # noqa: S101 - for the type checker
        # An image of a class left out still counts where another right answer is left.
        answers = self._real[sample_ids.clamp(min=0)]  # [B, answers]
        answered = (answers != LEFT_OUT) & (sample_ids >= 0)[:, None]
        best = torch.full_like(sample_ids, self._num_classes)
        for column in range(answers.shape[1]):
            place = places(logits, answers[:, column].clamp(min=0))
            best = torch.where(answered[:, column], torch.minimum(best, place), best)
        valid = answered.any(1)
        counted = torch.stack((valid, valid & self._first(best, 1), valid & self._first(best)))
        self._real_sums += counted.sum(1).double()

    def _first(self, place: Tensor, most: int = TOP) -> Tensor:
        return place < min(most, self._num_classes)

    def total(self) -> Tallied:
        """Add up over all ranks; one host sync. **Every rank**, each gets the same.

        Raises:
            DataError: no image at all.
        """
        own = torch.cat((self._by_class.flatten(), self._loss_sum[None], self._real_sums))
        sums = torch.tensor(dist.sum_across_ranks(own.tolist()), dtype=torch.float64)
        by_class, loss_sum = sums[:-4].reshape(-1, 3), float(sums[-4])
        images, top1, top5 = by_class.sum(0).tolist()
        return Tallied(
            overall=result(images, top1, top5, loss_sum),
            by_class=tuple(ClassCount(*map(int, row)) for row in by_class.tolist()),
            confusions=self._confusions(),
            real=None if self._real is None else _real_result(*sums[-3:].tolist()),
        )

    def _confusions(self) -> tuple[Confusion, ...]:
        pairs, _ = self._mistakes()
        found, counts = pairs.unique(return_counts=True)
        total: Counter[int] = Counter()
        for of_rank in dist.gather_objects([found.tolist(), counts.tolist()]):
            total.update(dict(zip(*of_rank, strict=True)))
        ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))
        return tuple(
            Confusion(*divmod(pair, self._num_classes), images) for pair, images in ordered
        )

    def _mistakes(self) -> tuple[Tensor, Tensor]:
        """This rank's images that were taken for something else: pairs and sample ids, on the CPU.

        One host sync.
        """
        if not self._wrong:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        both = torch.stack((torch.cat(self._wrong), torch.cat(self._wrong_ids))).cpu()
        pairs, sample_ids = both[:, both[0] >= 0]
        return pairs, sample_ids

    def mistakes(self, labels: Sequence[int], most: int) -> list[Mistake]:
        """The first images, in manifest order, of each of some classes that were taken for others.

        **Every rank**, with the same arguments; each gets the same. A rank sends ``most`` of each
        class at most.

        Args:
            labels: positions of the classes.
            most: images of each.
        """
        pairs, sample_ids = self._mistakes()
        order = sample_ids.argsort()
        pairs, sample_ids = pairs[order], sample_ids[order]
        own: list[list[int]] = []
        for label in labels:
            of_class = pairs // self._num_classes == label
            ids, taken_for = sample_ids[of_class][:most], pairs[of_class][:most] % self._num_classes
            own += [[*row, label] for row in zip(ids.tolist(), taken_for.tolist(), strict=True)]
        gathered = sorted(row for of_rank in dist.gather_objects(own) for row in of_rank)
        found = [Mistake(sample_id, label, taken_for) for sample_id, taken_for, label in gathered]
        return [
            mistake
            for wanted in labels
            for mistake in [one for one in found if one.label == wanted][:most]
        ]


def count_batches(
    logits_of: Callable[[Tensor], Tensor],
    batches: Iterable[EvalBatch],
    prepare: Callable[[Tensor], Tensor],
    mapping: Mapping,
    tally: Tally,
    device: torch.device,
) -> None:
    """Evaluate a classifier over this rank's batches: the one way in which images are counted.

    **Every rank** calls it where ``logits_of`` communicates, with the same number of batches. No
    host sync and no collective of its own.

    Args:
        logits_of: float images [B, 3, H, W] on ``device`` to fp32 logits [B, rows of the head]; no
            gradients.
        batches: this rank's share; over all ranks every image is valid exactly once.
        prepare: uint8 images on ``device`` to normalised float images.
        mapping: to the classes evaluated.
        tally: counts them.
        device: where to compute.

    Raises:
        DataError: a label outside the set's classes.
    """
    for batch in batches:
        mapped = mapping.batch(batch)
        logits = logits_of(prepare(batch.images.to(device, non_blocking=True)))
        tally.add(
            mapping.logits(logits),
            mapped.labels.to(device, non_blocking=True),
            mapped.valid.to(device, non_blocking=True),
            mapped.sample_ids.to(device, non_blocking=True),
        )


def _real_result(images: float, top1: float, top5: float) -> RealResult:
    if images == 0:
        return RealResult(0, float("nan"), float("nan"))
    return RealResult(int(images), top1 / images, top5 / images)
