"""Walks the headers of a tar file as nothing but numbers, and trusts none of them.

Tar readers pass over damage in silence: a file cut between two members, or a header with a flipped
bit, ends the archive for them like its true end. Here every header must have its checksum, and the
file must end with the two empty blocks and nothing after them. No member is ever written to disk.

Read are POSIX ustar, pax (``path`` and ``size``) and GNU long names and sizes.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK_BYTES = 512
_MOST_EXTENDED_BYTES = 2**20
_EMPTY_BLOCK = bytes(BLOCK_BYTES)
_REGULAR, _DIRECTORY = b"0\0", b"5"
_PAX, _PAX_GLOBAL, _GNU_LONG_NAME = b"x", b"g", b"L"


class TarError(Exception):
    """Bytes that are not a whole tar file of regular files; the message is the reason."""


@dataclass(frozen=True)
class Member:
    """One regular file in a tar.

    Attributes:
        name: its path in the tar; never to be used as a path here.
        header_name: the name field of the header right before its bytes, without closing zeros.
        offset: of its first byte in the tar file.
        bytes: its size.
    """

    name: str
    header_name: bytes
    offset: int
    bytes: int


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
    offset = 0
    extended: dict[str, str] = {}
    while True:
        header = os.pread(descriptor, BLOCK_BYTES, offset)
        if header == _EMPTY_BLOCK:
            _check_end(descriptor, offset, total)
            return
        kind, size = _check_header(header, offset, total)
        size = int(extended.get("size", size))
        payload = offset + BLOCK_BYTES
        offset = payload + -(-size // BLOCK_BYTES) * BLOCK_BYTES
        if offset > total:
            raise TarError(
                f"cut short: the member at byte {payload:,} has {size:,} bytes, the file ends "
                f"at {total:,}"
            )
        if kind in (_PAX, _PAX_GLOBAL, _GNU_LONG_NAME):
            found = _extended(descriptor, kind, payload, size)
            # What a global header says of all members is of no use for one.
            extended |= {} if kind == _PAX_GLOBAL else found
            continue
        name = extended.get("path") or _plain_name(header, payload)
        extended = {}
        if kind in _REGULAR:
            yield Member(name, header[:100].rstrip(b"\0"), payload, size)
        elif kind != _DIRECTORY:
            raise TarError(f"{name!r} is neither a file nor a directory (type {kind!r})")


def header_bytes_field(field: bytes) -> int:
    """The number in a size field: octal text, or GNU's binary form; `ValueError` if neither."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.rstrip(b"\0 ").lstrip(b" ")
    if text.strip(b"01234567"):
        raise ValueError(f"not an octal number: {field!r}")
    return int(text or b"0", 8)


def _check_header(header: bytes, offset: int, total: int) -> tuple[bytes, int]:
    """Type and size of the member whose header this is."""
    if offset == 0:
        _check_kind(header)
    if not header:
        raise TarError(f"cut short: it ends at byte {total:,} without the closing empty blocks")
    if len(header) < BLOCK_BYTES:
        raise TarError(f"cut short: it ends inside the header at byte {offset:,}")
    try:
        said = header_bytes_field(header[148:156])
        size = header_bytes_field(header[124:136])
    except ValueError:
        raise TarError(f"damaged header at byte {offset:,}") from None
    if said != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise TarError(f"damaged header at byte {offset:,}: its checksum does not agree")
    return header[156:157], size


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


def _check_end(descriptor: int, offset: int, total: int) -> None:
    if total - offset < 2 * BLOCK_BYTES:
        raise TarError(f"cut short: one closing empty block at byte {offset:,}, expected two")
    while offset < total:
        chunk = os.pread(descriptor, 2**20, offset)
        if chunk.strip(b"\0"):
            raise TarError(f"something follows the closing empty block at byte {offset:,}")
        if not chunk:
            raise TarError("became shorter while it was read")
        offset += len(chunk)


def _extended(descriptor: int, kind: bytes, offset: int, size: int) -> dict[str, str]:
    """What an extended header says of the next member, pax records or GNU's long name."""
    if size > _MOST_EXTENDED_BYTES:
        raise TarError(f"the extended header at byte {offset:,} claims {size:,} bytes")
    data = os.pread(descriptor, size, offset)
    try:
        if kind == _GNU_LONG_NAME:
            return {"path": data.rstrip(b"\0").decode()}
        found: dict[str, str] = {}
        while data:
            length = int(data.partition(b" ")[0])
            keyword, _, value = data[:length].partition(b" ")[2].partition(b"=")
            if not 5 <= length <= len(data) or not value.endswith(b"\n"):
                raise ValueError("record without its end")
            if keyword in (b"path", b"size"):
                found[keyword.decode()] = value[:-1].decode()
            data = data[length:]
        if not found.get("size", "0").isascii() or not found.get("size", "0").isdigit():
            raise ValueError("size is not a number")
    except ValueError:
        raise TarError(f"damaged extended header at byte {offset:,}") from None
    return found


def _plain_name(header: bytes, payload: int) -> str:
    name = header[:100].partition(b"\0")[0]
    # GNU tars hold times where ustar has a prefix.
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    try:
        return (prefix + b"/" + name if prefix else name).decode()
    except UnicodeDecodeError:
        raise TarError(f"name {name!r} at byte {payload:,} is not UTF-8") from None
