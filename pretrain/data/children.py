"""Processes a rank forks for its data: they outlive signals meant for the job, not the rank."""

import ctypes
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
_OF_THE_JOB = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


@contextmanager
def forking() -> Iterator[None]:
    """Within, processes may be forked that call `serve`; signals for the job reach them there.

    Until then a child has its parent's handlers, or none: it would swallow the signal that is to
    end it, or die of one that it is to outlive.
    """
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_JOB)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def serve(parent: int, *, ends_by: Iterable[signal.Signals] = ()) -> None:
    """Prepare this process, forked within `forking`, to work for its parent and to end with it.

    Args:
        parent: number of the process that forked this one.
        ends_by: signals meant for the job that this process does end by.
    """
    for number in _OF_THE_JOB:
        signal.signal(number, signal.SIG_DFL if number in ends_by else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_THE_JOB)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before the kernel was asked.
    if os.getppid() != parent:
        os._exit(1)
