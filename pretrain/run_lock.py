"""The lock of a run: one process, on any machine, trains it or supervises those who do."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.errors import LaunchError
from pretrain.run_directory import RunDirectory

LOCK_TRIES = 10


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Take a file's lock and return its descriptor, or None while another process has it.

    The kernel frees the lock when the process ends, however it ends.

    Args:
        path: the file, created if missing, unless it is only looked at.
        shared: only look: shared locks do not exclude each other, and need no right to write.

    Raises:
        LaunchError: the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise LaunchError(
            f"{path}: the file system refuses locks ({error.strerror}); "
            "put runs_dir on one that has them"
        ) from None
    return descriptor


@contextmanager
def run_lock(run: RunDirectory, job: str) -> Iterator[bool]:
    """Hold the run alone; yields False, holding nothing, where another process has it."""
    descriptor = try_lock(run.lock_path)
    for _ in range(LOCK_TRIES):
        if descriptor is None:
            time.sleep(0.1)  # somebody may only be looking
            descriptor = try_lock(run.lock_path)
    if descriptor is None:
        yield False
        return
    try:
        pid = os.getpid()
        holder = {"host": socket.gethostname(), "pid": pid, "ticks": start_ticks(pid), "job": job}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield True
    finally:
        os.close(descriptor)


def lock_holder(run: RunDirectory) -> dict[str, Any] | None:
    """Who supervises the run now: host, pid, ticks, job; None where nobody does."""
    try:
        descriptor = try_lock(run.lock_path, shared=True)
    except FileNotFoundError:
        return None
    if descriptor is not None:
        os.close(descriptor)
        return None
    try:
        return json.loads(run.lock_path.read_text())
    except ValueError:  # taken this instant, not yet written
        return {}


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with its id, its identity. None if gone.

    A zombie counts as gone.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_alive(pid: int, ticks: int) -> bool:
    """Whether the very process that had this id at that start time still runs on this machine."""
    return start_ticks(pid) == ticks
