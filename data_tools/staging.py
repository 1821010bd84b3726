"""A directory that appears complete or not at all."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pretrain.errors import DataError
from pretrain.files import read_json, replace_text, sync

_LOCK_FILE = ".lock"
_PLAN_FILE = ".plan.json"


def check_destination(destination: Path) -> None:
    """Refuse a destination that exists and is not an empty directory; nothing is written.

    Raises:
        DataError: it is a file, or holds something, or cannot be looked into.
    """
    try:
        if destination.is_dir():
            content = sorted(entry.name for entry in destination.iterdir())
            if content:
                shown = ", ".join(content[:3]) + (", …" if len(content) > 3 else "")
                raise DataError(
                    f"{destination}: expected a new or empty directory, it holds "
                    f"{len(content)} entries ({shown}); choose another or remove it"
                )
        elif destination.exists():
            raise DataError(f"{destination}: expected a directory, it is a file")
    except OSError as error:
        raise DataError(f"{destination}: {error.strerror}") from None


@contextlib.contextmanager
def staged(
    destination: Path, *, plan: dict[str, object] | None = None, done: str = ""
) -> Iterator[Path]:
    """Give a directory to fill; when the block ends well it becomes ``destination``.

    It lies beside the destination as ``.NAME.partial``. Without a plan it is removed when the
    block raises, and what a killed process left there is removed by the next. With one, files
    that match ``done`` are worth keeping: the directory stays when there are any, and the next
    call with an equal plan finds everything as it was left.

    Args:
        destination: a directory that is absent or empty.
        plan: what the content depends on, small and of JSON values.
        done: pattern of the files that mark finished work; they do not go to the destination.

    Raises:
        DataError: the destination is not free, another process fills it, finished work of another
            plan lies there, or the block met an `OSError`: it cannot be written.
    """
    destination = destination.absolute()
    check_destination(destination)
    stage = destination.with_name(f".{destination.name}.partial")
    try:
        stage.mkdir(parents=True, exist_ok=True)
        lock = os.open(stage / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataError(
            f"{destination}: cannot be made, {stage.parent} says: {error.strerror}; "
            "choose a directory that can be written"
        ) from None
    try:
        take_lock(lock, f"{destination}: another process is making it; wait for it")
        continues = plan is not None and _continues(stage, plan, done)
        _clear(stage, "*.tmp" if continues else "*")
        try:
            if plan is not None and not continues:
                replace_text(stage / _PLAN_FILE, json.dumps(plan))
            yield stage
            _commit(stage, destination, done if plan is not None else None)
        except BaseException as error:
            if plan is None or not any(stage.glob(done)):
                shutil.rmtree(stage, ignore_errors=True)
            if isinstance(error, OSError):
                raise cannot_write(stage, error) from None
            raise
    finally:
        os.close(lock)


def take_lock(lock: int, busy: str) -> None:
    """Lock an open file until it is closed.

    Raises:
        DataError: another process holds it; ``busy`` is the message.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(busy) from None
    except OSError:
        # Some parallel file systems are mounted without locks; then care is with the user.
        return


def cannot_write(place: Path, error: OSError) -> DataError:
    """What to say when a directory that is being filled takes no more."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "; make room there, then the same command continues" if full else ""
    return DataError(f"{place}: cannot be written: {error.strerror}{remedy}")


def _continues(stage: Path, plan: dict[str, object], done: str) -> bool:
    if not any(stage.glob(done)):
        return False
    found = read_json(stage / _PLAN_FILE) or {}
    differing = sorted(key for key in {*found, *plan} if found.get(key) != plan.get(key))
    if differing:
        raise DataError(
            f"{stage}: holds an interrupted build that differs in {', '.join(differing)}; repeat "
            "that command to finish it, or remove the directory to start anew"
        )
    return True


def _clear(stage: Path, pattern: str) -> None:
    for entry in stage.glob(pattern):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK_FILE:
            entry.unlink()


def _commit(stage: Path, destination: Path, done: str | None) -> None:
    if done is not None:
        for mark in (*stage.glob(_PLAN_FILE + "*"), *stage.glob(done)):
            mark.unlink()
    (stage / _LOCK_FILE).unlink()
    sync(stage)
    try:
        stage.rename(destination)
    except OSError as error:
        raise DataError(
            f"{destination}: cannot be put in place: {error.strerror}; it must be absent or "
            "empty, and not a mount point"
        ) from None
    sync(destination.parent)
