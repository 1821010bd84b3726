"""How many steps were applied and skipped, counted where it is decided."""

import torch
from torch import Tensor


class Counts:
    """Counts steps in the memory of the master weights, so that no step is waited for. Any rank.

    Args:
        device: where the master weights are.

    Attributes:
        applied: steps that changed the weights, int64 scalar on the device.
        skipped: steps that were not finite, likewise.
    """

    def __init__(self, device: torch.device) -> None:
        self.applied, self.skipped = torch.zeros(2, dtype=torch.int64, device=device)

    def add(self, applied: Tensor) -> None:
        """Count a step; ``applied`` is a bool scalar on the device."""
        self.applied += applied
        self.skipped += ~applied

    def load(self, applied: int, skipped: int) -> None:
        """Go on from other numbers."""
        self.applied.fill_(applied)
        self.skipped.fill_(skipped)

    def state(self) -> dict[str, int]:
        """Return both as `Engine.load_fragments` takes them; waits for the device."""
        return {"optimizer_step": int(self.applied), "skipped_steps": int(self.skipped)}
