"""Who may change a directory of checkpoints: the attempt that took it over last. No torch.

The owner has a working directory of its own, ``attempt_00000007``, and changes what the directory
lists by renaming only: a finished checkpoint out of there, a doomed one into it. To take over is to
make a working directory with a greater number and to remove all lesser ones. A stale attempt,
however long it was frozen or cut off, then has nothing left to rename from. mkdir, rename and rmdir
are atomic on every file system, shared ones included; no lock, clock or lease time is involved.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path

from pretrain.checkpoint.layout import TEMPORARY_SUFFIX
from pretrain.errors import OwnershipError, StorageError
from pretrain.files import read_json, replace_text

OWNER_NAME = "owner.json"
"""In a working directory: who made it."""

_AREA_NAME = re.compile(r"attempt_(\d{8,18})(\.old)?")
_REMOVE_SECONDS = 30.0


def area_name(number: int) -> str:
    """Return the name of an attempt's working directory."""
    return f"attempt_{number:08d}"


def numbers_taken(directory: Path) -> dict[Path, int]:
    """Return the working directories, those being removed included, with their numbers."""
    matches = {path: _AREA_NAME.fullmatch(path.name) for path in directory.iterdir()}
    return {path: int(match[1]) for path, match in matches.items() if match}


def take_over(directory: Path, attempt: int) -> int:
    """Become the owner of a directory of checkpoints, which is made if missing. Rank zero.

    When this returns, no attempt before can add or delete a checkpoint any more; what it was
    writing is gone.

    Args:
        directory: of the checkpoints.
        attempt: number that is wanted; a greater one is taken if there were as many owners before.

    Returns:
        The number taken, greater than every one before.

    Raises:
        OwnershipError: another attempt took over in the meantime.
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    number = max(attempt, 1 + max(numbers_taken(directory).values(), default=0))
    while True:
        try:
            (directory / area_name(number)).mkdir()
            break
        except FileExistsError:  # another attempt starts at this very moment
            number += 1
    for area, other in numbers_taken(directory).items():
        if other < number:
            _remove(area)
    for leftover in directory.glob(f"step_*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    try:
        replace_text(directory / area_name(number) / OWNER_NAME, json.dumps(owner) + "\n")
    except FileNotFoundError:
        check_owner(directory, number)
        raise
    return number


def check_owner(directory: Path, number: int) -> None:
    """Make sure that nobody took a directory over. Any rank.

    Raises:
        OwnershipError: somebody did; says who.
    """
    try:
        (directory / area_name(number)).stat()
        return
    except FileNotFoundError:
        pass
    except OSError:  # the file system is in trouble, which says nothing about owners
        return
    newer: dict[Path, int] = {}
    with contextlib.suppress(OSError):
        newer = {path: n for path, n in numbers_taken(directory).items() if n > number}
    if not newer:
        raise OwnershipError(
            f"{directory / area_name(number)}: was deleted under this attempt, which can save "
            "nothing without it; start the run again"
        )
    area = max(newer, key=lambda path: newer[path])
    owner = read_json(area / OWNER_NAME) or {}
    raise OwnershipError(
        f"{directory}: attempt {newer[area]} (process {owner.get('pid')} on {owner.get('host')}) "
        f"has taken this run over from this one, attempt {number}, which therefore ends"
    )


def _remove(area: Path) -> None:
    """Remove a working directory for good, even while its owner still writes into it.

    Renamed first, so that no path leads there; removed, so that no handle does.

    Raises:
        StorageError: it does not go away.
    """
    doomed = area if area.suffix else area.with_name(f"{area.name}.old")
    with contextlib.suppress(FileNotFoundError):
        if doomed != area:
            shutil.rmtree(doomed, ignore_errors=True)
            area.rename(doomed)
    with contextlib.suppress(FileNotFoundError):
        for stage in doomed.iterdir():
            # Before anything in it is deleted: whoever still has a handle cannot commit a half.
            if stage.suffix != ".dead":
                stage.rename(stage.with_name(f"{stage.name}.dead"))
    deadline = time.monotonic() + _REMOVE_SECONDS
    while True:
        shutil.rmtree(doomed, ignore_errors=True)
        try:
            left = [path.name for path in doomed.rglob("*")] if doomed.exists() else None
        except FileNotFoundError:
            continue
        # NFS keeps what a process of this very machine has open, under such names.
        if left is None or (left and all(name.startswith(".nfs") for name in left)):
            return
        if time.monotonic() > deadline:
            raise StorageError(f"{doomed}: cannot be deleted; delete it, or stop who writes there")
        time.sleep(0.05)
