"""Walks the headers of a tar file that must be whole, such as a shard.

Tar readers pass over damage in silence: a file cut between two members, or a header with a flipped
bit, ends the archive for them like its true end. Here the file must end with the two empty blocks
and nothing after them. No member is ever written to disk.
"""

import os
from collections.abc import Iterator

from data_tools.tar_headers import BLOCK_BYTES, EMPTY_BLOCK, Member, TarError, parse_header
from data_tools.tars import FileExtent


def walk(descriptor: int) -> Iterator[Member]:
    """Every regular file of a tar, in order; the bytes of the files are not read.

    Args:
        descriptor: of the tar file, open for reading; its position is not used.

    Raises:
        TarError: damage, compression, links, devices, or no tar at all. Members before the place
            have been given by then.
        OSError: the file cannot be read.
    """
    total = os.fstat(descriptor).st_size
    if total == 0:
        raise TarError("empty file")
    extent = FileExtent(descriptor, 0, total)
    while True:
        at = extent.offset
        block = extent.read(BLOCK_BYTES)
        if block == EMPTY_BLOCK:
            _check_end(extent, at, total)
            return
        if at == 0:
            _check_kind(block)
        if not block:
            raise TarError(f"cut short: it ends at byte {total:,} without the closing empty blocks")
        member = parse_header(block, at, extent.read)
        if not extent.skip_to(member.end):
            raise TarError(
                f"cut short: the member at byte {member.offset:,} has {member.bytes:,} bytes, the "
                f"file ends at {total:,}"
            )
        if member.is_file:
            yield _named(member)


def _named(member: Member) -> Member:
    try:
        member.name.encode()
    except UnicodeEncodeError:
        raise TarError(f"name {member.name!r} at byte {member.offset:,} is not UTF-8") from None
    return member


def _check_kind(start: bytes) -> None:
    """Say by name what people do save as .tar."""
    text = start.lstrip().lower()
    if start.startswith(b"\x1f\x8b"):
        raise TarError("gzip-compressed, expected a plain tar: unpack it with gunzip first")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"{")):
        raise TarError(
            "a web page or an error message saved as .tar, expected a tar file: fetch it again"
        )
    if len(start) == BLOCK_BYTES and start[257:262] != b"ustar":
        raise TarError(f"not a tar file (begins with {start[:8]!r})")


def _check_end(extent: FileExtent, at: int, total: int) -> None:
    """The rest of the file behind one empty block."""
    if total - at < 2 * BLOCK_BYTES:
        raise TarError(f"cut short: one closing empty block at byte {at:,}, expected two")
    while extent.offset < total:
        chunk = extent.read(2**20)
        if chunk.strip(b"\0"):
            raise TarError(f"something follows the closing empty block at byte {at:,}")
        if not chunk:
            raise TarError("became shorter while it was read")
