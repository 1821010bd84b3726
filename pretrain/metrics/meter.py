"""Sums of training steps, kept on the device until a record is due."""

import math
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from pretrain import dist
from pretrain.metrics.activations import Looked
from pretrain.metrics.names import of_stages

GIB = 2**30


class Step(Protocol):
    """What one training step says about itself."""

    @property
    def loss_sum(self) -> Tensor:
        """This rank's sum over its images of the loss; fp32 scalar on the device."""
        ...

    @property
    def images(self) -> int:
        """Images of this rank in the step."""
        ...

    @property
    def grad_norm(self) -> float | Tensor:
        """Norm of the global gradient before clipping, the same on every rank."""
        ...

    @property
    def applied(self) -> Tensor:
        """Whether the step changed anything, the same on every rank; bool scalar anywhere."""
        ...

    @property
    def hits(self) -> Tensor | None:
        """This rank's images that were hit, scalar on the device; None if nothing counts them."""
        ...

    @property
    def sample(self) -> "Sample | None":
        """What only some steps say."""
        ...


class Sample(Protocol):
    """What a step that was looked at more closely says about itself."""

    @property
    def update_squares(self) -> Tensor:
        """Sums of squares of the step's changes and of the weights: fp64 [2, S] of S stages."""
        ...


@dataclass(frozen=True)
class Interval:
    """The steps between two records.

    Attributes:
        values: ``train/`` and ``data/`` means and sums over all ranks, by declared name.
        losses: mean loss over the images of each step, in order; None for a step not applied.
    """

    values: dict[str, float]
    losses: list[float | None]


@dataclass(frozen=True)
class _Step:
    loss_sum: Tensor | float
    grad_norm: Tensor | float
    images: int
    applied: Tensor | float
    hits: Tensor | float | None


class Meter:
    """Accumulates steps without waiting for the device; one wait and one sum per record."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._steps: list[_Step] = []
        self._bad_samples = 0
        self._update_squares: Tensor | None = None

    def add(self, step: Step, bad_samples: int = 0) -> None:
        """Add one step of this rank. No host sync, no communication.

        Args:
            step: the step's result.
            bad_samples: images of this rank that could not be read.
        """
        self._bad_samples += bad_samples
        self._update_squares = None if step.sample is None else step.sample.update_squares
        norm = step.grad_norm
        norm = norm.detach().double() if isinstance(norm, Tensor) else norm
        hits = None if step.hits is None else step.hits.detach().double()
        loss_sum, applied = step.loss_sum.detach().double(), step.applied.double()
        self._steps.append(_Step(loss_sum, norm, step.images, applied, hits))

    def read(self, looked: Looked | None = None) -> Interval:
        """The interval over all ranks; starts the next.

        **Every rank** calls it, at the same step. Waits for the device once. A skipped step's
        numbers are left out: they are what was not finite. With no applied step in the interval,
        loss, accuracy and norm are NaN; so are the updates of a last step that was sampled but not
        applied.

        Args:
            looked: at activations in the last step; None leaves those out.
        """
        updates = [] if self._update_squares is None else self._update_squares.flatten().tolist()
        rows, bad_samples, updates, activations = self._over_all_ranks(updates, _squares(looked))
        self._reset()
        if updates and rows[-1][_SKIPPED]:
            updates = [math.nan] * len(updates)
        applied = [row for row in rows if not row[_SKIPPED]]
        values = {
            "train/loss": _ratio(sum(row[_LOSS] for row in applied), _images(applied)),
            "train/grad_norm": _ratio(sum(row[_NORM] for row in applied), len(applied)),
            "train/skipped_steps": float(len(rows) - len(applied)),
            "data/bad_samples": bad_samples,
        }
        if any(row[_HITS] is not None for row in rows):
            counted = [row for row in applied if row[_HITS] is not None]
            hits = sum(row[_HITS] for row in counted)
            values["train/accuracy_fraction"] = _ratio(hits, _images(counted))
        values |= _by_stage("train/update_ratio", _root_ratios(updates))
        values |= _by_stage("train/activation_rms", _root_ratios(activations))
        if looked is not None:
            largest = dist.largest_across_ranks(_to_host(looked.maxima))
            values |= _by_stage("train/activation_max", largest)
        return Interval(
            values, [None if row[_SKIPPED] else row[_LOSS] / row[_IMAGES] for row in rows]
        )

    def state(self) -> dict[str, Any]:
        """The unfinished interval over all ranks, to be saved with a checkpoint.

        **Every rank** calls it. JSON-able; independent of the number of ranks. What is sampled is
        of a step that a record follows at once, and is not saved.
        """
        rows, bad_samples, _, _ = self._over_all_ranks([], [])
        return {"steps": rows, "bad_samples": bad_samples}

    def load_state(self, state: Mapping[str, Any], rank: int) -> None:
        """Take up an unfinished interval. **Every rank** calls it; rank zero carries the sums.

        Rows of versions that counted no hits are shorter by those.
        """
        self._reset()
        first = rank == 0
        for loss, images, norm, skipped, *rest in state["steps"]:
            hits = rest[0] if rest else None
            self._steps.append(
                _Step(
                    loss if first else 0.0,
                    norm,
                    int(images) if first else 0,
                    1.0 - skipped,
                    hits if first or hits is None else 0.0,
                )
            )
        self._bad_samples = int(state["bad_samples"]) if first else 0

    def _over_all_ranks(
        self, updates: Sequence[float], activations: Sequence[float]
    ) -> tuple[list[list[Any]], float, list[float], list[float]]:
        """A row for each step, the bad samples, and the sums of both arguments.

        Norms are global already, so not summed.
        """
        applied = [bool(value) for value in _to_host([step.applied for step in self._steps])]
        losses = _counted(applied, [step.loss_sum for step in self._steps])
        norms = _counted(applied, [step.grad_norm for step in self._steps])
        hits = _counted(applied, [0.0 if step.hits is None else step.hits for step in self._steps])
        images = _counted(applied, [float(step.images) for step in self._steps])
        losses, images, hits, [bad_samples], updates, activations = _sum_columns(
            losses, images, hits, [self._bad_samples], updates, activations
        )
        rows = [
            [loss, count, norm, float(not kept), None if step.hits is None else hit]
            for step, kept, loss, count, norm, hit in zip(
                self._steps, applied, losses, images, norms, hits, strict=True
            )
        ]
        return rows, bad_samples, updates, activations


_LOSS, _IMAGES, _NORM, _SKIPPED, _HITS = range(5)


def _sum_columns(*columns: Sequence[float]) -> list[list[float]]:
    """Add up columns of numbers over all ranks, in one collective."""
    sums = iter(dist.sum_across_ranks([value for column in columns for value in column]))
    return [list(islice(sums, len(column))) for column in columns]


def _counted(applied: Sequence[bool], values: Sequence[Tensor | float]) -> list[float]:
    """Numbers from host and device, those of steps that were not applied left out as zeros."""
    found = zip(applied, _to_host(values), strict=True)
    return [value if kept else 0.0 for kept, value in found]


def _images(rows: Iterable[Sequence[Any]]) -> float:
    return sum(row[_IMAGES] for row in rows)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _squares(looked: Looked | None) -> list[float]:
    """Sums of squares of the stages' activations, then how many numbers those are of."""
    if looked is None:
        return []
    return [norm**2 for norm in _to_host(looked.norms)] + [float(n) for n in looked.elements]


def _root_ratios(sums: Sequence[float]) -> list[float]:
    """Square roots of the ratios of the first half of the numbers to the second."""
    half = len(sums) // 2
    return [
        _ratio(part, whole) ** 0.5 for part, whole in zip(sums[:half], sums[half:], strict=True)
    ]


def _by_stage(prefix: str, values: Sequence[float]) -> dict[str, float]:
    """The values under their declared names; none without values."""
    return dict(zip(of_stages(prefix), values, strict=True)) if values else {}


def _to_host(values: Sequence[Tensor | float]) -> list[float]:
    """Numbers from host and device, with one wait for the device."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return [float(value) for value in values]
    fetched = iter(torch.stack(tensors).tolist())
    return [next(fetched) if isinstance(value, Tensor) else value for value in values]


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of the rank that used most, in GiB; **every rank** calls it.

    On CUDA the allocator's peak on ``device``, elsewhere the process's peak resident set.
    """
    if device.type == "cuda":
        used_bytes = torch.cuda.max_memory_allocated(device)
    else:
        used_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return dist.max_across_ranks(used_bytes) / GIB
