"""A request to stop: set by a signal in any rank, agreed on by all at a step boundary."""

import signal
from collections.abc import Callable
from types import FrameType

from pretrain import dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""What Slurm sends before a time limit or preemption, and Ctrl-C."""


class StopRequest:
    """Turns the stop signals into a flag. One per process, in the main thread.

    A handler only sets the flag: saving inside it would deadlock a collective that is under way.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._vote: Callable[[], int] | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def agreed(self) -> str | None:
        """Return the name of a signal that some rank got before the last call, or None. Every rank.

        The same on every rank. Each call begins a vote and returns the one before, which travelled
        during the step: among a thousand ranks it takes as long as a short step.
        """
        vote, self._vote = self._vote, dist.start_max_across_ranks(self._signal)
        number = vote() if vote else 0
        return signal.Signals(number).name if number else None
