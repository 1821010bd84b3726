"""Child processes that die with their parent, and files that one process holds."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.run_lock import try_lock

_PR_SET_PDEATHSIG = 1


def die_with_parent(signal_number: int) -> Callable[[], None]:
    """A ``preexec_fn`` after which the child gets the signal when its parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def before_exec() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        if os.getppid() != parent:  # died before the call above
            os.kill(os.getpid(), signal.SIGKILL)

    return before_exec


@contextmanager
def private_files() -> Iterator[None]:
    """Let everything made meanwhile, also by child processes, be for its owner alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, waiting for whoever has it."""
    descriptor = try_lock(path)
    while descriptor is None:
        time.sleep(0.1)
        descriptor = try_lock(path)
    try:
        yield
    finally:
        os.close(descriptor)
