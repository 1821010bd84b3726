"""A node's copies of the shards of a remote set: fetched once, verified, bounded in bytes.

The directory belongs to one machine and one user, and may serve several sets, runs and processes::

    NAME-KEY/                     one remote set (see `pretrain.location.set_directory`)
        x-train-000000.tar        whole and verified: names without a suffix appear by one rename
        x-train-000000.idx
        x-train-000001.tar.460123136.partial    what has come of a file, and the size it will have
        x-train-000001.tar.lock   locked by the process that fetches; holds the entity tag
    space.lock                    locked while somebody counts, removes or reserves bytes

A file goes when room is needed for another: first those that nobody has touched for a while, then
the one whose next use lies furthest ahead. A partial counts with the size it will have, so the
bound holds at every moment.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.schema import DataConfig
from pretrain.data import cache_space
from pretrain.data.cache_space import FullError, Group, locked
from pretrain.data.manifest import INDEX_RECORD_BYTES, Manifest, Shard, index_path
from pretrain.data.remote import download, patience_of
from pretrain.errors import DataError
from pretrain.location import RemoteFile, cache_directory

FRESH_SECONDS = 600.0
"""Shards of other sets or splits that were touched within this time are taken to be in use."""
_LONGEST_POLL_SECONDS = 0.5
_INDEX_TRANSFERS = 8


@dataclass(frozen=True)
class _File:
    name: str
    bytes: int
    sha256: str


class ShardCache:
    """The shards of one split of a remote set, on this node. Processes may be forked with it.

    Args:
        manifest: of a remote set.
        split_name: one of its splits.
        data: for the directory, the bound and the deadlines.
        next_use: of a shard by its number in the split; the smaller, the sooner. It decides what
            is removed; null removes what was touched longest ago.

    Raises:
        DataError: the directory cannot be made or is another user's, or the largest shard alone
            is too large for it.
    """

    def __init__(
        self,
        manifest: Manifest,
        split_name: str,
        data: DataConfig,
        next_use: Callable[[int], int] | None = None,
    ):
        if manifest.url is None:
            raise ValueError(f"{manifest.root}: not a remote set")
        self.shards = manifest.split(split_name).shards
        self.root = manifest.root
        self._url = manifest.url
        self._top = manifest.root.parent
        self._limit_bytes = limit_bytes(data)
        self._next_use = next_use
        self._numbers = {shard.file: number for number, shard in enumerate(self.shards)}
        self._patience = patience_of(data)
        cache_space.make_private(self._top)
        check_cache(data, max(bytes_of(shard) for shard in self.shards), "its largest shard")
        self.root.mkdir(mode=0o700, exist_ok=True)

    def holds(self, number: int) -> bool:
        """Whether a shard and its index are here."""
        return all(map(self._is_whole, self._files(number)))

    def touch(self, number: int) -> None:
        """Say that a shard is in use or soon will be, to those who do not know this split."""
        for file in self._files(number):
            with contextlib.suppress(OSError):
                os.utime(self.root / file.name)

    def fetch(self, number: int, *, ahead: bool = False) -> bool:
        """Have a shard and its index here, by fetching them or waiting for who already does.

        They may be removed again at any time; whoever has opened them before keeps the index, but
        finds the tar empty.

        Args:
            number: of the shard in the split.
            ahead: only if nobody fetches it and nothing that is needed sooner has to go for it.

        Returns:
            Whether it is here.

        Raises:
            DataError: it cannot be fetched, its bytes are wrong, or there is no space for it.
        """
        return self._fetch(number, self._files(number), ahead=ahead)

    def fetch_indices(self) -> None:
        """Have the index of every shard of the split here, without the shards.

        Raises:
            DataError: as `fetch`.
        """
        with ThreadPoolExecutor(_INDEX_TRANSFERS) as pool:
            fetches = [
                pool.submit(self._fetch, number, self._files(number)[:1], ahead=False)
                for number in range(len(self.shards))
            ]
            try:
                for fetch in fetches:
                    fetch.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _files(self, number: int) -> list[_File]:
        shard = self.shards[number]
        index_bytes = shard.samples * INDEX_RECORD_BYTES
        index = _File(index_path(self.root, shard).name, index_bytes, shard.index_sha256)
        return [index, _File(shard.file, shard.bytes, shard.sha256)]

    def _is_whole(self, file: _File) -> bool:
        try:
            return (self.root / file.name).stat().st_size == file.bytes
        except FileNotFoundError:
            return False

    def _fetch(self, number: int, files: Sequence[_File], *, ahead: bool) -> bool:
        lock = self.root / f"{self.shards[number].file}.lock"
        # Twice what whoever holds the lock may take; then this process fetches, or gives up.
        seconds = 2 * self._patience.total_seconds(sum(file.bytes for file in files))
        give_up = time.monotonic() + seconds
        poll = 0.02
        while not all(map(self._is_whole, files)):
            with locked(lock) as mine:
                if mine:
                    if not all(self._fetch_file(number, f, lock, ahead=ahead) for f in files):
                        return False
                    lock.unlink(missing_ok=True)
                    break
            if ahead:
                return False
            if time.monotonic() > give_up:
                raise DataError(
                    f"{RemoteFile(self._url, self.shards[number].file)}: another process of this "
                    f"node has been fetching it for {seconds:.0f} s; end the one that holds {lock}"
                )
            time.sleep(poll)
            poll = min(2 * poll, _LONGEST_POLL_SECONDS)
        self.touch(number)
        return True

    def _fetch_file(self, number: int, file: _File, lock: Path, *, ahead: bool) -> bool:
        """Fetch one file of a shard that this process has locked; False: no room for it ahead."""
        partial = self.root / f"{file.name}.{file.bytes}.partial"
        give_up = time.monotonic() + self._patience.total_seconds(file.bytes)
        while not self._is_whole(file):
            try:
                self._reserve(number, partial, file.bytes, ahead=ahead)
                download(
                    RemoteFile(self._url, file.name),
                    partial,
                    lock,
                    size=file.bytes,
                    sha256=file.sha256,
                    patience=self._patience,
                )
                partial.replace(self.root / file.name)
            except FullError as full:
                if ahead:
                    return False
                if not full.may_pass or time.monotonic() > give_up:
                    raise self._no_space(file) from None
                time.sleep(_LONGEST_POLL_SECONDS)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise DataError(f"{partial}: cannot be written: {error.strerror}") from None
                # Somebody else fills the disk, or a quota is smaller than the bound.
                if ahead or not self._remove_one(number):
                    partial.unlink(missing_ok=True)
                    raise self._no_space(file) from None
        return True

    def _reserve(self, number: int, partial: Path, size: int, *, ahead: bool) -> None:
        def victims(present: list[Group]) -> list[Group]:
            return self._victims(present, number, ahead=ahead)

        cache_space.reserve(self._top, partial, size, self._limit_bytes, victims)

    def _remove_one(self, number: int) -> bool:
        with cache_space.space_lock(self._top):
            present = cache_space.groups(self._top)
            return any(map(cache_space.remove, self._victims(present, number, ahead=False)))

    def _victims(self, present: list[Group], number: int, *, ahead: bool) -> list[Group]:
        """What may go for a shard, the least needed first."""
        now = time.time()
        scored: list[tuple[tuple[int, float], Group]] = []
        own = self._next_use(number) if self._next_use is not None else 0
        for group in present:
            idle_seconds = now - group.touched
            is_own = group.tar.parent == self.root and group.tar.name in self._numbers
            if is_own and self._numbers[group.tar.name] == number:
                continue
            if is_own and self._next_use is not None:
                next_use = self._next_use(self._numbers[group.tar.name])
                if not ahead or next_use > own:
                    scored.append(((1, next_use), group))
            elif idle_seconds > FRESH_SECONDS:
                scored.append(((2, idle_seconds), group))
            elif not ahead:
                scored.append(((1 if is_own else 0, idle_seconds), group))
        scored.sort(key=lambda pair: pair[0], reverse=True)
        return [group for _, group in scored]

    def _no_space(self, file: _File) -> DataError:
        free = shutil.disk_usage(self.root).free
        return DataError(
            f"{self.root}: no space for {file.name}, {file.bytes / 2**30:.3g} GiB: "
            f"{free / 2**30:.3g} GiB free on the disk, data.cache_gib is "
            f"{self._limit_bytes / 2**30:.3g}; free space, or give data.cache_dir another disk"
        )


def limit_bytes(data: DataConfig) -> int:
    """What a node may cache."""
    return int(data.cache_gib * 2**30)


def bytes_of(shard: Shard) -> int:
    """What a shard takes in the cache, with its index."""
    return shard.bytes + shard.samples * INDEX_RECORD_BYTES


def check_cache(data: DataConfig, needed_bytes: int, what: str) -> None:
    """Refuse, before anything is fetched, a cache that cannot hold what a node needs at a time.

    Args:
        data: the section of the config.
        needed_bytes: by `bytes_of`, over the shards in play.
        what: whose bytes these are, for the message.

    Raises:
        DataError: ``data.cache_gib``, or the disk, is too small.
    """
    top = cache_directory(data.cache_dir)
    cache_space.check_room(top, limit_bytes(data), needed_bytes, what)
