"""Sums of training steps, kept on the device until a record is due."""

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pretrain import dist

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
    def skipped(self) -> bool:
        """Whether the step was not applied, the same on every rank."""
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
    skipped: bool


class Meter:
    """Accumulates steps without waiting for the device; one wait and one collective per record."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._steps: list[_Step] = []
        self._bad_samples = 0

    def add(self, step: Step, bad_samples: int = 0) -> None:
        """Add one step of this rank. No host sync, no communication.

        A skipped step's loss and norm are left out: they are what was not finite.

        Args:
            step: the step's result.
            bad_samples: images of this rank that could not be read.
        """
        self._bad_samples += bad_samples
        if step.skipped:
            self._steps.append(_Step(0.0, 0.0, 0, True))
            return
        norm = step.grad_norm
        norm = norm.detach().double() if isinstance(norm, Tensor) else norm
        self._steps.append(_Step(step.loss_sum.detach().double(), norm, step.images, False))

    def read(self) -> Interval:
        """The interval over all ranks; starts the next.

        **Every rank** calls it, at the same step. Waits for the device once. With no applied step
        in the interval, loss and norm are NaN.
        """
        rows, bad_samples = self._over_all_ranks()
        self._reset()
        applied = [row for row in rows if not row[_SKIPPED]]
        images = sum(row[_IMAGES] for row in applied)
        nan = float("nan")
        return Interval(
            {
                "train/loss": sum(row[_LOSS] for row in applied) / images if images else nan,
                "train/grad_norm": (
                    sum(row[_NORM] for row in applied) / len(applied) if applied else nan
                ),
                "train/skipped_steps": float(len(rows) - len(applied)),
                "data/bad_samples": bad_samples,
            },
            [None if row[_SKIPPED] else row[_LOSS] / row[_IMAGES] for row in rows],
        )

    def state(self) -> dict[str, Any]:
        """The unfinished interval over all ranks, to be saved with a checkpoint.

        **Every rank** calls it. JSON-able; independent of the number of ranks.
        """
        rows, bad_samples = self._over_all_ranks()
        return {"steps": rows, "bad_samples": bad_samples}

    def load_state(self, state: Mapping[str, Any], rank: int) -> None:
        """Take up an unfinished interval. **Every rank** calls it; rank zero carries the sums."""
        self._reset()
        for loss, images, norm, skipped in state["steps"]:
            first = rank == 0
            self._steps.append(
                _Step(loss if first else 0.0, norm, int(images) if first else 0, bool(skipped))
            )
        self._bad_samples = int(state["bad_samples"]) if rank == 0 else 0

    def _over_all_ranks(self) -> tuple[list[list[float]], float]:
        """A row for each step, and the bad samples; norms are global already, so not summed."""
        losses = _to_host([step.loss_sum for step in self._steps])
        norms = _to_host([step.grad_norm for step in self._steps])
        images = [step.images for step in self._steps]
        count = len(self._steps)
        sums = dist.sum_across_ranks([*losses, *images, self._bad_samples])
        skipped = [float(step.skipped) for step in self._steps]
        rows = zip(sums[:count], sums[count:-1], norms, skipped, strict=True)
        return [list(row) for row in rows], sums[-1]


_LOSS, _IMAGES, _NORM, _SKIPPED = range(4)


def _to_host(values: list[Tensor | float]) -> list[float]:
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
