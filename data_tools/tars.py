"""Walks tar archives that nobody vouches for: forwards only, nothing extracted, nothing trusted.

A member's name is only ever text to look at. Headers must carry their checksum; links, devices and
sparse files are refused, as are names that lead out of the archive. A lone block of NULs, at which
ordinary readers stop, is stepped over when a good header follows.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pretrain.errors import DataError

BLOCK_BYTES = 512
_ZEROS = bytes(BLOCK_BYTES)
_MAX_EXTENSION_BYTES = 2**16
_MAX_MEMBER_BYTES = 2**48
_CHUNK_BYTES = 2**20
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


@dataclass(frozen=True)
class Member:
    """A regular file in an archive.

    Attributes:
        name: as the archive gives it; never to be used as a path.
        offset: where its bytes begin in what the archive was read from.
        bytes: its size.
        zero_blocks: blocks of NULs right before its header; ordinary readers stop at them.
    """

    name: str
    offset: int
    bytes: int
    zero_blocks: int


class FileExtent:
    """Part of an open file, read forwards; what is skipped is not read."""

    def __init__(self, descriptor: int, offset: int, end: int):
        self._descriptor = descriptor
        self.offset = offset
        self._end = end

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer at the end."""
        data = os.pread(self._descriptor, max(0, min(count, self._end - self.offset)), self.offset)
        self.offset += len(data)
        return data

    def skip_to(self, offset: int) -> bool:
        """Go forwards; False where the extent ends before."""
        self.offset = min(offset, self._end)
        return offset <= self._end

    def inner(self, count: int) -> "FileExtent":
        """The next ``count`` bytes as an extent of their own."""
        return FileExtent(self._descriptor, self.offset, min(self.offset + count, self._end))


class Stream(Protocol):
    """What a stream must be able to do."""

    def read(self, size: int, /) -> bytes:
        """Up to that many bytes, fewer only at the end."""
        ...

    def tell(self) -> int:
        """Bytes before the position."""
        ...


class StreamExtent:
    """A stream that knows its position, or the next part of one, read forwards."""

    def __init__(self, stream: Stream, end: int = 2**62):
        self._stream = stream
        self._end = end

    @property
    def offset(self) -> int:
        """Position in the stream."""
        return self._stream.tell()

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer at the end."""
        return self._stream.read(max(0, min(count, self._end - self.offset)))

    def skip_to(self, offset: int) -> bool:
        """Go forwards; False where the extent ends before."""
        while self.offset < offset:
            if not self.read(min(_CHUNK_BYTES, offset - self.offset)):
                return False
        return True

    def inner(self, count: int) -> "StreamExtent":
        """The next ``count`` bytes as an extent of their own."""
        return StreamExtent(self._stream, min(self.offset + count, self._end))


Extent = FileExtent | StreamExtent


def walk(extent: Extent, where: str, *, must_end: bool = True) -> Iterator[Member]:
    """Go through the regular files of an archive.

    While the caller holds a member, the extent stands at its first byte and may be read there.

    Args:
        extent: the archive.
        where: its name, for messages.
        must_end: refuse an archive without an end mark, as one cut between two members is.

    Raises:
        DataError: a damaged header, an end too early, or a member that is refused.
    """
    zero_blocks = 0
    long_name: str | None = None
    pax: dict[str, str] = {}
    while True:
        at = extent.offset
        block = extent.read(BLOCK_BYTES)
        if len(block) < BLOCK_BYTES:
            if block or (must_end and zero_blocks < 2):
                raise _cut(where, at)
            return
        if block == _ZEROS:
            zero_blocks += 1
            continue
        if not _checksum_holds(block):
            if zero_blocks >= 2:  # behind the end mark may lie anything
                return
            raise DataError(
                f"{where}: damaged: no tar header at byte {at:,}; fetch it again or compare its "
                "checksum with the published one"
            )
        kind, size = block[156:157], _size(block, pax, where, at)
        if kind in b"LKxg":
            text = _extension(extent, size, where, at)
            if kind == b"L":
                long_name = text.rstrip(b"\0").decode(errors="surrogateescape")
            elif kind == b"x":
                pax = _pax(text)
            continue
        name = pax.get("path") or long_name or _name(block)
        end = extent.offset + -(-size // BLOCK_BYTES) * BLOCK_BYTES
        if kind in (b"0", b"\0", b"7") and not name.endswith("/"):
            yield Member(_safe(name, where), extent.offset, size, zero_blocks)
        elif kind != b"5" and not name.endswith("/"):
            what = _REFUSED.get(kind, f"of unknown kind {kind!r}")
            raise DataError(f"{where}: member {name[:100]!r} is {what}; only files are expected")
        if not extent.skip_to(end):
            raise _cut(where, at)
        zero_blocks, long_name, pax = 0, None, {}


def _cut(where: str, at: int) -> DataError:
    return DataError(
        f"{where}: cut short: the archive ends without its end mark (last header at byte {at:,}); "
        "fetch the rest"
    )


def _safe(name: str, where: str) -> str:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise DataError(f"{where}: member {name[:100]!r} leads out of the archive; do not trust it")
    return "/".join(part for part in parts if part not in ("", "."))


def _checksum_holds(block: bytes) -> bool:
    digits = block[148:156].strip(b"\0 ")
    try:
        written = int(digits, 8)
    except ValueError:
        return False
    blanked = block[:148] + b" " * 8 + block[156:]
    # Some old writers summed signed bytes.
    return written == sum(blanked) or written == sum(b - 256 if b > 127 else b for b in blanked)


def _size(block: bytes, pax: dict[str, str], where: str, at: int) -> int:
    field = block[124:136]
    try:
        if "size" in pax:
            size = int(pax["size"])
        elif field[0] & 0x80:
            size = int.from_bytes(field[1:], "big")
        else:
            size = int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        size = -1
    if block[156:157] == b"5":
        return 0
    if not 0 <= size < _MAX_MEMBER_BYTES:
        raise DataError(f"{where}: damaged: impossible size in the header at byte {at:,}")
    return size


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = block[345:500].split(b"\0")[0] + b"/" + name
    return name.decode(errors="surrogateescape")


def _extension(extent: Extent, size: int, where: str, at: int) -> bytes:
    if size > _MAX_EXTENSION_BYTES:
        raise DataError(f"{where}: damaged: extended header of {size:,} bytes at byte {at:,}")
    end = extent.offset + -(-size // BLOCK_BYTES) * BLOCK_BYTES
    text = extent.read(size)
    if len(text) < size or not extent.skip_to(end):
        raise _cut(where, at)
    return text


def _pax(text: bytes) -> dict[str, str]:
    """The ``length key=value`` lines of an extended header; a malformed rest is ignored."""
    found: dict[str, str] = {}
    while text:
        digits, _, _ = text.partition(b" ")
        if not digits.isdigit() or not len(digits) < int(digits) <= len(text):
            break
        record = text[len(digits) + 1 : int(digits) - 1]
        key, _, value = record.decode(errors="surrogateescape").partition("=")
        found[key] = value
        text = text[int(digits) :]
    return found
