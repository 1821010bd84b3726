"""What a step says about itself."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """What is looked at in some steps only.

    Attributes:
        update_squares: fp64 [2, S], for each of S stages this rank's sums of squares of what the
            step changed, and of the weights it started from; see `pretrain.engine.updates`.
        communication_seconds: gives the time in which this rank's step waited for collectives; may
            wait for the device. None where they run beside the computation.
    """

    update_squares: Tensor
    communication_seconds: Callable[[], float] | None


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss_sum: fp32 scalar on the device, the sum of the per-image losses of this rank.
        images: images this rank saw in the step.
        grad_norm: L2 norm of the global gradient before clipping, the same on every rank; inf
            where the step was skipped.
        applied: bool scalar where the master weights are, the same on every rank; false where the
            gradient was not finite somewhere, and no rank changed anything.
        hits: fp32 scalar on the device, this rank's images that were hit; None where nothing says
            what a hit is.
        loss_scale: factor on the loss; None except in fp16.
        sample: of a step that was sampled.
    """

    loss_sum: Tensor
    images: int
    grad_norm: float | Tensor
    applied: Tensor
    hits: Tensor | None = None
    loss_scale: float | None = None
    sample: Sample | None = None

    @property
    def skipped(self) -> bool:
        """Whether the step was not applied; waits for the device."""
        return not bool(self.applied)
