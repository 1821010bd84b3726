"""A directory that appears complete or not at all."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pretrain.errors import DataError
from pretrain.files import sync

_LOCK_FILE = ".lock"


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
def staged(destination: Path) -> Iterator[Path]:
    """Give a directory to fill; when the block ends well it becomes ``destination``.

    It lies beside the destination as ``.NAME.partial``. It is removed when the block raises, and
    what a killed process left there is removed by the next.

    Raises:
        DataError: the destination is not free, cannot be written, or another process fills it.
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
        _lock(lock, destination)
        _clear(stage)
        try:
            yield stage
            _commit(stage, destination)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _lock(lock: int, destination: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"{destination}: another process is making it; wait for it") from None
    except OSError:
        # Some parallel file systems are mounted without locks; then care is with the user.
        return


def _clear(stage: Path) -> None:
    for entry in stage.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK_FILE:
            entry.unlink()


def _commit(stage: Path, destination: Path) -> None:
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
