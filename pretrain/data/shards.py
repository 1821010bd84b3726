"""Fetches the bytes of one sample out of its shard, and makes sure they are the right ones.

Beside every shard lies its index: one little-endian record of 24 bytes per sample, in the order of
the samples in the tar (`INDEX_DTYPE`; ``numpy.fromfile(path, INDEX_DTYPE)`` reads it). A read
fetches the tar header of the image's member together with its bytes and compares the header's
name and size and the checksum of the bytes with the record, so neither a stale index nor a flipped
bit can pass for an image. Shards of a remote set are fetched into the node's cache when first
needed, and again when they had to go meanwhile.
"""

import hashlib
import os
import resource
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pretrain.data.cache import ShardCache
from pretrain.data.manifest import INDEX_RECORD_BYTES, Shard, index_path
from pretrain.errors import DataError

INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of the image's bytes in the tar; its header is the 512 bytes before
        ("bytes", "<u4"),  # of the image
        ("label", "<i4"),  # position in the manifest's class list
        ("name_crc32", "<u4"),  # of the member's name, UTF-8
        ("data_crc32", "<u4"),  # of the image's bytes
    ]
)
if INDEX_DTYPE.itemsize != INDEX_RECORD_BYTES:
    raise ImportError(f"index record: {INDEX_DTYPE.itemsize} bytes, not {INDEX_RECORD_BYTES}")

TAR_BLOCK_BYTES = 512
_READ_ATTEMPTS = 3
_TOUCH_SECONDS = 60.0
_FILES_KEPT_FREE = 256
MOST_OPEN = 1024
"""Shards that a reader keeps open unless it is told how many its order reads at a time."""
_MOST_MEMBERS_BEHIND = 8
_MOST_METADATA_BYTES = 2**20
_MOST_BYTES_BEFORE = 2**14
"""How far before its image a sample's metadata is looked for, its header included."""


Value = TypeVar("Value")


class BadSampleError(Exception):
    """A sample that cannot be used; the message is the reason, the loader replaces the sample.

    Attributes:
        key: the sample's key in its shard, where it could be told.
    """

    def __init__(self, reason: str, key: str | None = None):
        super().__init__(reason)
        self.key = key


@dataclass(frozen=True)
class Sample:
    """One sample as stored: the file bytes of the image, its label, its key in the shard."""

    data: bytes
    label: int
    key: str


@dataclass
class _OpenShard:
    file: int
    records: NDArray[np.void]
    touched: float


class ShardReader:
    """Reads samples by their id; shards are opened when first needed and few are kept open.

    Args:
        root: directory of the shard set.
        shards: the split's shards, in manifest order.
        num_classes: labels at or above it are refused.
        cache: of the same split, for a remote set.
        most_open: shards kept open, each with its index in memory; fewer where the process may
            not open as many files.
    """

    def __init__(
        self,
        root: Path,
        shards: Sequence[Shard],
        num_classes: int,
        cache: ShardCache | None = None,
        most_open: int = MOST_OPEN,
    ):
        self.root = root
        self._most_open = most_open
        self._cache = cache
        self._shards = shards
        self._num_classes = num_classes
        self._ends = np.cumsum([shard.samples for shard in shards])
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def locate(self, sample_id: int) -> tuple[Shard, int]:
        """The shard that holds a sample, and the sample's position in it."""
        number, position = self._find(sample_id)
        return self._shards[number], position

    def is_here(self, sample_id: int) -> bool:
        """Whether a sample can be read without its shard being fetched first."""
        return self._cache is None or self._cache.holds(self._find(sample_id)[0])

    def read(self, sample_id: int) -> Sample:
        """Fetch one sample.

        Raises:
            BadSampleError: its bytes are missing, cannot be read, or are not those indexed.
            DataError: the shard's index is damaged, or the shard cannot be fetched.
        """
        return self._checked(*self._fetched(sample_id, _image_and_header))

    def read_metadata(self, sample_id: int) -> bytes | None:
        """Fetch the ``.json`` of a sample, which lies beside its image; None where there is none.

        The index knows nothing of it: only its tar header can be checked.

        Raises:
            BadSampleError: it cannot be read, or a header on the way is damaged.
            DataError: as `read`.
        """
        found, _ = self._fetched(sample_id, _metadata)
        if isinstance(found, BadSampleError):
            raise found
        return found

    def _fetched(
        self, sample_id: int, fetch: Callable[[int, np.void], Value]
    ) -> tuple[Value, np.void]:
        """What ``fetch`` reads of a sample's shard by its record, and that record."""
        number, position = self._find(sample_id)
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                opened = self._opened(number)
                record = opened.records[position]
                value = fetch(opened.file, record)
            except OSError as error:
                # Network file systems recover; a new descriptor is needed after a stale handle.
                self._close(number)
                if self._cache is not None and isinstance(error, FileNotFoundError):
                    continue  # gone since it was fetched
                if attempt == _READ_ATTEMPTS:
                    raise BadSampleError(f"cannot be read: {error.strerror}") from None
                time.sleep(0.05 * 10 ** (attempt - 1))
            else:
                if self._cache is None or self._is_kept(number, opened, self._cache):
                    return value, record
        raise DataError(
            f"{self.root / self._shards[number].file}: had to go from the cache "
            f"{_READ_ATTEMPTS} times while it was read; raise data.cache_gib"
        )

    def close(self) -> None:
        """Close every shard."""
        for number in list(self._open):
            self._close(number)

    def _find(self, sample_id: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._ends, sample_id, side="right"))
        return number, int(sample_id - self._ends[number]) + self._shards[number].samples

    def _checked(self, raw: bytes, record: np.void) -> Sample:
        data = raw[TAR_BLOCK_BYTES:]
        if len(data) != record["bytes"]:
            raise BadSampleError("the shard ends before it")
        header = raw[:TAR_BLOCK_BYTES]
        name = header[:100].rstrip(b"\0")
        size = _octal(header[124:136])
        if zlib.crc32(name) != record["name_crc32"] or size != record["bytes"]:
            raise BadSampleError("the index does not belong to the shard")
        key = name.decode().rpartition(".")[0]
        if zlib.crc32(data) != record["data_crc32"]:
            raise BadSampleError("its bytes have changed since it was packed", key)
        label = int(record["label"])
        if not 0 <= label < self._num_classes:
            raise BadSampleError(f"label {label}, expected 0 to {self._num_classes - 1}", key)
        return Sample(data=data, label=label, key=key)

    def _is_kept(self, number: int, opened: _OpenShard, cache: ShardCache) -> bool:
        """Whether the cache still has an open shard; closes it otherwise, its bytes are gone."""
        if os.fstat(opened.file).st_nlink == 0:
            self._close(number)
            return False
        now = time.monotonic()
        if now - opened.touched > _TOUCH_SECONDS:
            opened.touched = now
            cache.touch(number)
        return True

    def _opened(self, number: int) -> _OpenShard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= min(self._most_open, _files_allowed()):
            self._close(next(iter(self._open)))
        if self._cache is not None:
            self._cache.fetch(number)
        shard = self._shards[number]
        records = read_index(self.root, shard)
        file = os.open(self.root / shard.file, os.O_RDONLY | os.O_CLOEXEC)
        opened = _OpenShard(file, records, time.monotonic())
        self._open[number] = opened
        return opened

    def _close(self, number: int) -> None:
        opened = self._open.pop(number, None)
        if opened is not None:
            os.close(opened.file)


def _image_and_header(file: int, record: np.void) -> bytes:
    length = TAR_BLOCK_BYTES + int(record["bytes"])
    return _read_fully(file, length, int(record["offset"]) - TAR_BLOCK_BYTES)


def _metadata(file: int, record: np.void) -> bytes | BadSampleError | None:
    """The member named like the image, but ``.json``: a few behind it, or close before it.

    Members of a sample follow each other sorted by extension: a ``.png`` comes after its ``.json``.
    """
    offset = int(record["offset"])
    name = _read_fully(file, TAR_BLOCK_BYTES, offset - TAR_BLOCK_BYTES)[:100].rstrip(b"\0")
    stem = name.rpartition(b".")[0] + b"."
    size = int(record["bytes"])
    for _ in range(_MOST_MEMBERS_BEHIND):
        offset += -(-size // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
        header = _read_fully(file, TAR_BLOCK_BYTES, offset)
        if not header.startswith(stem):
            break
        size = _octal(header[124:136])
        if size < 0 or not _is_header(header):
            return BadSampleError("a header behind its image is damaged", stem[:-1].decode())
        offset += TAR_BLOCK_BYTES
        if header[:100].rstrip(b"\0") == stem + b"json":
            return _read_fully(file, min(size, _MOST_METADATA_BYTES), offset)
    return _metadata_before(file, int(record["offset"]) - TAR_BLOCK_BYTES, stem + b"json")


def _metadata_before(file: int, end: int, name: bytes) -> bytes | None:
    """The member of that name within the last bytes before ``end``, a multiple of a tar block."""
    start = max(0, end - _MOST_BYTES_BEFORE)
    before = _read_fully(file, end - start, start)
    for at in range(len(before) - TAR_BLOCK_BYTES, -1, -TAR_BLOCK_BYTES):
        header, data = before[at : at + TAR_BLOCK_BYTES], before[at + TAR_BLOCK_BYTES :]
        if header[:100].rstrip(b"\0") == name and _is_header(header):
            size = _octal(header[124:136])
            return data[:size] if 0 <= size <= len(data) else None
    return None


def _is_header(block: bytes) -> bool:
    """Whether the checksum of a tar header is its own."""
    return sum(block[:148] + b" " * 8 + block[156:]) == _octal(block[148:156])


def _octal(field: bytes) -> int:
    """A number of a tar header, however it is padded; -1 if it is none."""
    try:
        return int(field.strip(b"\0 "), 8)
    except ValueError:
        return -1


def _files_allowed() -> int:
    """Shards that may be open; each costs two descriptors, a memory map keeps one of its own."""
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft_limit - _FILES_KEPT_FREE) // 2)


def read_index(root: Path, shard: Shard) -> NDArray[np.void]:
    """Map the index of a shard: `INDEX_DTYPE` [samples], read-only.

    Raises:
        OSError: it is missing or cannot be read.
        DataError: it is not the one the manifest was written with.
    """
    path = index_path(root, shard)
    try:
        records = np.memmap(path, dtype=INDEX_DTYPE, mode="r")
    except ValueError as error:
        raise DataError(f"{path}: index damaged: {error}; copy it here again") from None
    if hashlib.sha256(records.data).hexdigest() != shard.index_sha256:
        raise DataError(
            f"{path}: index damaged: its sha256 is not the manifest's; copy it here again"
        )
    return records


def _read_fully(file: int, count: int, offset: int) -> bytes:
    """``pread`` until ``count`` bytes or the end of the file."""
    data = os.pread(file, count, offset)
    while len(data) < count:
        more = os.pread(file, count - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
