"""Finds out from the numbers of past steps that training has gone wrong. No torch, no ranks."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.config.guard import GuardConfig

TO_DEVIATIONS = 1.4826
"""Median absolute deviation to standard deviation, of normal noise."""


@dataclass(frozen=True)
class Fault:
    """Training that should not go on from here.

    Attributes:
        first_step: the first step that went wrong, 0-based.
        steps_done: steps done when it was noticed.
        reason: what was seen, for people.
    """

    first_step: int
    steps_done: int
    reason: str


class Guard:
    """Watches the loss of every step: the same numbers on every rank give the same answers.

    Steps that are not finite are never applied, so a few do no harm; many in a row say that the
    weights are beyond help. A spike is a loss far above those before it that stays there
    (PaLM, arXiv 2204.02311, section 5.1, went back by hand).

    Args:
        settings: what counts as wrong.
    """

    def __init__(self, settings: GuardConfig) -> None:
        self._settings = settings
        self._forget()

    def _forget(self) -> None:
        self._losses: deque[float] = deque(maxlen=self._settings.memory_steps)
        self._skipped_in_a_row = 0
        self._high_in_a_row = 0

    def watch(self, steps_done: int, losses: Sequence[float | None]) -> Fault | None:
        """Look at the steps since the last call, in order.

        Args:
            steps_done: steps done with the last of ``losses``.
            losses: mean loss over the images of each step; None for a step not applied.

        Returns:
            The first fault; the guard then knows no more than at its start.
        """
        first = steps_done - len(losses)
        for step, loss in enumerate(losses, first):
            fault = self._watch_one(step, loss)
            if fault is not None:
                self._forget()
                return Fault(step + 1 - fault[0], steps_done, fault[1])
        return None

    def _watch_one(self, step: int, loss: float | None) -> tuple[int, str] | None:
        """How many steps up to this one are at fault, and what is wrong with them."""
        settings = self._settings
        if loss is None:
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row < settings.max_skipped_steps:
                return None
            return self._skipped_in_a_row, (
                f"the gradient was not finite in {self._skipped_in_a_row} steps in a row"
            )
        self._skipped_in_a_row = 0
        limit = self._limit()
        if limit is None or loss <= limit:
            self._high_in_a_row = 0
            self._losses.append(loss)
            return None
        self._high_in_a_row += 1
        if self._high_in_a_row < settings.spike_steps:
            return None
        return self._high_in_a_row, (
            f"the loss was above {limit:.4g} in {self._high_in_a_row} steps in a row up to step "
            f"{step + 1} ({loss:.4g}); before, its median was {np.median(self._losses):.4g}"
        )

    def _limit(self) -> float | None:
        """Above this a loss is too high; None while too few are known to tell."""
        settings = self._settings
        if settings.spike_deviations is None or len(self._losses) < settings.memory_steps:
            return None
        losses = np.array(self._losses)
        median = float(np.median(losses))
        deviation = TO_DEVIATIONS * float(np.median(np.abs(losses - median)))
        return median + max(
            settings.spike_deviations * deviation, settings.spike_fraction * abs(median)
        )

    def state(self) -> dict[str, Any]:
        """What was seen so far, to be saved with a checkpoint; JSON-able."""
        return {
            "losses": list(self._losses),
            "skipped_in_a_row": self._skipped_in_a_row,
            "high_in_a_row": self._high_in_a_row,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self._losses = deque(state["losses"], maxlen=self._settings.memory_steps)
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self._high_in_a_row = state["high_in_a_row"]


def odd_ranks(digests: Sequence[int]) -> list[int]:
    """Ranks whose digest is not the one that most have; all of them where no digest has most.

    Example:
        >>> odd_ranks([5, 5, 9, 5])
        [2]
        >>> odd_ranks([5, 9])
        [0, 1]
        >>> odd_ranks([5, 5])
        []
    """
    counts = Counter(digests).most_common(2)
    if len(counts) == 1:
        return []
    common, count = counts[0]
    if 2 * count <= len(digests):
        return list(range(len(digests)))
    return [rank for rank, digest in enumerate(digests) if digest != common]
