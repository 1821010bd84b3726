"""Sums of training steps, kept on the device until a record is due."""

import resource
from collections.abc import Mapping
from typing import Protocol

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


class Meter:
    """Accumulates steps without waiting for the device; one wait and one collective per record."""

    def __init__(self) -> None:
        self._reset()

    def add(self, step: Step, bad_samples: int = 0) -> None:
        """Add one step of this rank. No host sync, no communication.

        A skipped step's loss and norm are left out: they are what was not finite.

        Args:
            step: the step's result.
            bad_samples: images of this rank that could not be read.
        """
        self._bad_samples += bad_samples
        if step.skipped:
            self._skipped += 1
            return
        self._images += step.images
        self._applied += 1
        loss_sum = step.loss_sum.detach().double()
        norm = torch.as_tensor(step.grad_norm, dtype=torch.float64, device=loss_sum.device)
        sums = torch.stack((loss_sum, norm.detach()))
        self._sums = sums if self._sums is None else self._sums + sums

    def read(self) -> dict[str, float]:
        """The interval's ``train/`` and ``data/`` means and sums over all ranks; starts the next.

        **Every rank** calls it, at the same step. Waits for the device once. With no applied step
        in the interval, loss and norm are NaN.
        """
        loss_sum, images, norm_sum, bad_samples = self._global_sums()
        applied, skipped = self._applied, self._skipped
        self._reset()
        return {
            "train/loss": loss_sum / images if images else float("nan"),
            "train/grad_norm": norm_sum / applied if applied else float("nan"),
            "train/skipped_steps": float(skipped),
            "data/bad_samples": bad_samples,
        }

    def state(self) -> dict[str, float]:
        """The unfinished interval, summed over all ranks, to be saved with a checkpoint.

        **Every rank** calls it. JSON-able; independent of the number of ranks.
        """
        loss_sum, images, norm_sum, bad_samples = self._global_sums()
        return {
            "loss_sum": loss_sum,
            "images": images,
            "grad_norm_sum": norm_sum,
            "applied_steps": self._applied,
            "skipped_steps": self._skipped,
            "bad_samples": bad_samples,
        }

    def load_state(self, state: Mapping[str, float], rank: int) -> None:
        """Take up an unfinished interval. **Every rank** calls it; rank zero carries the sums."""
        self._reset()
        self._applied = int(state["applied_steps"])
        self._skipped = int(state["skipped_steps"])
        self._carried_norm_sum = state["grad_norm_sum"]
        if rank == 0:
            self._carried_loss_sum = state["loss_sum"]
            self._images = int(state["images"])
            self._bad_samples = int(state["bad_samples"])

    def _reset(self) -> None:
        self._sums: Tensor | None = None  # float64 [2]: loss and gradient norm
        self._carried_loss_sum = self._carried_norm_sum = 0.0
        self._images = self._applied = self._skipped = self._bad_samples = 0

    def _global_sums(self) -> tuple[float, float, float, float]:
        """Loss, images, gradient norm, bad samples; the norm is global already, so not summed."""
        loss_sum, norm_sum = (0.0, 0.0) if self._sums is None else self._sums.tolist()
        loss_sum, images, bad_samples = dist.sum_across_ranks(
            [loss_sum + self._carried_loss_sum, self._images, self._bad_samples]
        )
        return loss_sum, images, norm_sum + self._carried_norm_sum, bad_samples


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of the rank that used most, in GiB; **every rank** calls it.

    On CUDA the allocator's peak on ``device``, elsewhere the process's peak resident set.
    """
    if device.type == "cuda":
        used_bytes = torch.cuda.max_memory_allocated(device)
    else:
        used_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return dist.max_across_ranks(used_bytes) / GIB
