"""A request to stop: set by a signal in any rank, agreed on by all at a step boundary."""

import signal
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
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def agreed(self) -> str | None:
        """Return the name of a signal that some rank got, the same on every rank. Every rank."""
        number = dist.max_across_ranks(self._signal)
        return signal.Signals(number).name if number else None
