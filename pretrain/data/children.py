"""Processes a rank forks for its data: they outlive signals meant for the job, not the rank."""

import ctypes
import os
import signal
from collections.abc import Iterable

_PR_SET_PDEATHSIG = 1


def serve(parent: int, ignored: Iterable[signal.Signals]) -> None:
    """Prepare this process to work for its parent and to end with it, however that ends.

    Args:
        parent: number of the process that forked this one.
        ignored: signals that are the parent's to answer.
    """
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before the kernel was asked.
    if os.getppid() != parent:
        os._exit(1)
