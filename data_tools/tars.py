"""Walks tar archives that nobody vouches for: forwards only, nothing extracted, nothing trusted.

A lone block of NULs, at which ordinary readers stop, is stepped over when a good header follows.
"""

import os
from collections.abc import Iterator
from typing import Protocol

from data_tools.tar_headers import (
    BLOCK_BYTES,
    EMPTY_BLOCK,
    CutShortError,
    Member,
    TarError,
    is_header,
    parse_header,
)
from pretrain.errors import DataError

_CHUNK_BYTES = 2**20


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
    while True:
        at = extent.offset
        block = extent.read(BLOCK_BYTES)
        if len(block) < BLOCK_BYTES:
            if block or (must_end and zero_blocks < 2):
                raise _cut(where, at)
            return
        if block == EMPTY_BLOCK:
            zero_blocks += 1
            continue
        if zero_blocks >= 2 and not is_header(block):  # behind the end mark may lie anything
            return
        try:
            member = parse_header(block, at, extent.read)
        except CutShortError:
            raise _cut(where, at) from None
        except TarError as error:
            raise DataError(f"{where}: {error}; {error.remedy}") from None
        if member.is_file:
            yield member
        if not extent.skip_to(member.end):
            raise _cut(where, at)
        zero_blocks = 0


def _cut(where: str, at: int) -> DataError:
    return DataError(
        f"{where}: cut short: the archive ends without its end mark (last header at byte {at:,}); "
        "fetch the rest"
    )
