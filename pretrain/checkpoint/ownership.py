"""Who may change a directory of checkpoints: the attempt that took it over last. No torch.

The owner has a working directory of its own, ``attempt_00000007_9f3c1a2b``, and changes what the
directory lists by renaming only: a finished checkpoint out of there, a doomed one into it. To take
over is to make a working directory with a greater number and to remove all lesser ones. A stale
attempt, however long it was frozen or cut off, then has nothing left to rename from. mkdir, rename
and rmdir are atomic on every file system, shared ones included; no lock, clock or lease time is
involved.

Two that take over at once each make theirs first and look afterwards, so that at least one sees the
other; who sees a greater one withdraws and tries again. The random part of a name makes sure that
no removed directory ever comes back under a stale attempt.
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

_AREA_NAME = re.compile(r"attempt_(\d{8,18})_[0-9a-f]{8}(\.old)?")
_REMOVE_SECONDS = 30.0


def number_of(area: str) -> int:
    """Return the number in a working directory's name; 0 for any other name."""
    match = _AREA_NAME.fullmatch(area)
    return int(match[1]) if match else 0


def areas(directory: Path) -> list[Path]:
    """Return the working directories, those being removed included, by rank: the owner's last."""
    found = [path for path in directory.iterdir() if number_of(path.name)]
    return sorted(found, key=_precedence)


def _precedence(area: Path) -> tuple[int, str]:
    return number_of(area.name), area.name


def take_over(directory: Path, attempt: int) -> str:
    """Become the owner of a directory of checkpoints, which is made if missing. Rank zero.

    When this returns, no attempt before can add or delete a checkpoint any more; what it was
    writing is gone.

    Args:
        directory: of the checkpoints.
        attempt: number that is wanted; a greater one is taken where it was taken before.

    Returns:
        Name of the working directory, with a number no less than any before.

    Raises:
        OwnershipError: another attempt took over in the meantime.
        StorageError: what an attempt before left cannot be removed.
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    number = attempt
    while True:
        others = areas(directory)
        number = max(number, 1 + max((number_of(area.name) for area in others), default=0))
        mine = directory / f"attempt_{number:08d}_{os.urandom(4).hex()}"
        mine.mkdir()
        others = areas(directory)
        if others[-1] == mine:
            break
        _remove(mine)  # another attempt came in between; what it removed may include this one
    for area in others[:-1]:
        _remove(area)
    for leftover in directory.glob(f"step_*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    try:
        replace_text(mine / OWNER_NAME, json.dumps(owner) + "\n")
    except FileNotFoundError:
        check_owner(directory, mine.name)
        raise
    return mine.name


def check_owner(directory: Path, area: str) -> None:
    """Make sure that nobody took a directory over. Any rank.

    Args:
        directory: of the checkpoints.
        area: name of this attempt's working directory.

    Raises:
        OwnershipError: somebody did; says who.
    """
    try:
        (directory / area).stat()
        return
    except FileNotFoundError:
        pass
    except OSError:  # the file system is in trouble, which says nothing about owners
        return
    newer: list[Path] = []
    with contextlib.suppress(OSError):
        newer = [path for path in areas(directory) if _precedence(path) > _precedence(Path(area))]
    if not newer:
        raise OwnershipError(
            f"{directory / area}: was deleted under this attempt, which can save nothing without "
            "it; start the run again"
        )
    owner = read_json(newer[-1] / OWNER_NAME) or {}
    raise OwnershipError(
        f"{directory}: attempt {number_of(newer[-1].name)} (process {owner.get('pid')} on "
        f"{owner.get('host')}) has taken this run over from this one, attempt {number_of(area)}, "
        "which therefore ends"
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
