"""The bytes of a node's cache: who counts them, what goes when there is no room, and locks.

`pretrain.data.cache` says how the directory is laid out.
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.errors import DataError

SPACE_LOCK_FILE = "space.lock"
DISK_KEPT_FREE_BYTES = 16 * 2**20
_SPACE_LOCK_SECONDS = 60.0
_SET = re.compile(r".+-[0-9a-f]{24}")
_FILE = re.compile(r"(?P<stem>.+)\.(?P<kind>tar|idx)(\.(?P<reserved>[0-9]+)\.partial)?")


class FullError(Exception):
    """No room, and nothing that may go for it.

    Attributes:
        may_pass: whether it may come by waiting, as other transfers end.
    """

    def __init__(self, *, may_pass: bool):
        super().__init__("full")
        self.may_pass = may_pass


@dataclass
class Group:
    """The files of one shard in the cache.

    Attributes:
        tar: path of its tar, there or not.
        files: those there are, partials among them.
        bytes: what they take, partials with the size they will have.
        unwritten_bytes: what partials lack.
        touched: when last, seconds since the epoch.
    """

    tar: Path
    files: list[Path] = field(default_factory=list)
    bytes: int = 0
    unwritten_bytes: int = 0
    touched: float = 0.0


def groups(top: Path) -> list[Group]:
    """Everything that takes space in a cache, shard by shard."""
    found: dict[Path, Group] = {}
    for folder in top.iterdir() if top.is_dir() else ():
        if not _SET.fullmatch(folder.name) or not folder.is_dir():
            continue
        for entry in os.scandir(folder):
            match = _FILE.fullmatch(entry.name)
            if match is None:
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # a partial got its final name
                continue
            size = int(match["reserved"] or status.st_size)
            tar = folder / f"{match['stem']}.tar"
            group = found.setdefault(tar, Group(tar))
            group.files.append(Path(entry.path))
            group.bytes += size
            group.unwritten_bytes += max(0, size - status.st_size)
            group.touched = max(group.touched, status.st_mtime)
    return list(found.values())


def reserve(
    top: Path,
    partial: Path,
    size: int,
    limit_bytes: int,
    victims: Callable[[list[Group]], list[Group]],
) -> None:
    """Make room for a file and set it aside by making its ``partial``, empty if it is not there.

    Args:
        top: the cache.
        partial: its name says the size.
        size: bytes the file will have.
        limit_bytes: what the cache may hold.
        victims: which groups may go, the first first.

    Raises:
        FullError: there is no room.
        OSError: the partial cannot be made.
    """
    with space_lock(top):
        present = groups(top)
        used = sum(group.bytes for group in present)
        unwritten = sum(group.unwritten_bytes for group in present)
        if not partial.exists():
            used, unwritten = used + size, unwritten + size
        candidates: Iterator[Group] | None = None
        while True:
            free = shutil.disk_usage(top).free - DISK_KEPT_FREE_BYTES - unwritten
            if used <= limit_bytes and free >= 0:
                break
            candidates = iter(victims(present)) if candidates is None else candidates
            group = next(candidates, None)
            if group is None:
                raise FullError(may_pass=free >= 0)
            if remove(group):
                used, unwritten = used - group.bytes, unwritten - group.unwritten_bytes
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


def remove(group: Group) -> bool:
    """Remove the files of a shard unless somebody is fetching it; returns whether they are gone.

    The tar's bytes are freed at once, whoever still has it open: readers find it empty.
    """
    lock = group.tar.with_name(f"{group.tar.name}.lock")
    with locked(lock) as mine:
        if not mine:
            return False
        for path in group.files:
            with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
                path.unlink()
                # Not an index: it is mapped into memory, and there an empty file is a crash.
                if path.suffix != ".idx":
                    file.truncate(0)
        lock.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, if nobody else has it; the kernel frees it when the process ends.

    The holder may unlink the file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield _lock(descriptor, path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DataError(
            f"{path}: the file system refuses locks ({error.strerror}); data.cache_dir must be on "
            "a disk of this machine"
        ) from None
    # Unlinked by its last holder between the opening and the locking: that is nobody's lock.
    with contextlib.suppress(FileNotFoundError):
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    return False


@contextlib.contextmanager
def space_lock(top: Path) -> Iterator[None]:
    """Be the only one on this node who counts, removes or reserves.

    Raises:
        DataError: somebody has it for too long, or the file system has no locks.
    """
    give_up = time.monotonic() + _SPACE_LOCK_SECONDS
    path = top / SPACE_LOCK_FILE
    while True:
        with locked(path) as mine:
            if mine:
                yield
                return
        if time.monotonic() > give_up:
            raise DataError(
                f"{path}: held by another process for {_SPACE_LOCK_SECONDS:.0f} s; end that "
                "process, or give another data.cache_dir"
            )
        time.sleep(0.01)


def make_private(top: Path) -> None:
    """Make the cache's directory, which nobody else may write to.

    Raises:
        DataError: it cannot be made, or somebody else could have put things there.
    """
    try:
        top.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = top.lstat()
    except OSError as error:
        raise DataError(
            f"{top}: cannot be made: {error.strerror}; give data.cache_dir=DIR on a local disk"
        ) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise DataError(f"{top}: is not a directory of yours; give data.cache_dir=DIR")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DataError(f"{top}: other users may write to it; run: chmod go-w {top}")


def check_room(top: Path, limit_bytes: int, needed_bytes: int, what: str) -> None:
    """Refuse a cache that cannot hold what is needed at a time.

    Args:
        top: the cache, made or not.
        limit_bytes: what it may hold.
        needed_bytes: what it must.
        what: whose bytes these are, for the message.

    Raises:
        DataError: the bound, or the disk, is too small.
    """
    needed = f"{what}: {needed_bytes / 2**30:.3g} GiB"
    if needed_bytes > limit_bytes:
        raise DataError(
            f"data.cache_gib: {limit_bytes / 2**30:.3g} GiB are too few for {needed}; "
            f"give data.cache_gib={-(-needed_bytes * 12 // 10 // 2**30)} or more"
        )
    disk = top
    while not disk.exists():
        disk = disk.parent
    # What is cached already either is of use or can go.
    held = sum(group.bytes - group.unwritten_bytes for group in groups(top))
    available = max(0, shutil.disk_usage(disk).free - DISK_KEPT_FREE_BYTES) + held
    if needed_bytes > available:
        raise DataError(
            f"{top}: {available / 2**30:.3g} GiB are free on this disk, too few for {needed}; "
            "give data.cache_dir=DIR on a larger one"
        )
