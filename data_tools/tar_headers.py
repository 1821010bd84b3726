"""Parses the headers of tar archives as nothing but numbers, and trusts none of them.

Read are old, POSIX ustar, pax (``path`` and ``size``) and GNU headers (long names, binary sizes).
Each must carry its checksum; links, devices and sparse files are refused, and names that lead out
of the archive. What comes between and after the members is for the two who walk them to judge:
`data_tools.tars` steps over what occurs in published archives, `data_tools.tar_walk` wants a file
that is whole.
"""

from collections.abc import Callable
from dataclasses import dataclass

BLOCK_BYTES = 512
EMPTY_BLOCK = bytes(BLOCK_BYTES)
_MOST_EXTENSION_BYTES = 2**20
_MOST_MEMBER_BYTES = 2**48
_MOST_OCTAL_BYTES = 8**11
_REGULAR, _FOLDER = (b"0", b"\0", b"7"), b"5"
_GNU_LONG_NAME, _GNU_LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}
_FETCH_AGAIN = "fetch it again or compare its checksum with the published one"


class TarError(Exception):
    """Bytes that are not a whole tar of regular files; the message is the reason.

    Attributes:
        remedy: what to do about it.
    """

    def __init__(self, reason: str, remedy: str = _FETCH_AGAIN):
        super().__init__(reason)
        self.remedy = remedy


class CutShortError(TarError):
    """The archive ends where it must not."""


@dataclass(frozen=True)
class Member:
    """What the headers of one member say.

    Attributes:
        name: its path in the archive, without empty parts; never to be used as a path here. Bytes
            that are not UTF-8 are escaped as surrogates.
        header_name: the name field of the header right before its bytes, without closing zeros.
        offset: of its first byte.
        bytes: its size.
        is_file: False for folders, and for headers that are about no member.
    """

    name: str
    header_name: bytes
    offset: int
    bytes: int
    is_file: bool

    @property
    def end(self) -> int:
        """Where the next header is."""
        return self.offset + _padded(self.bytes)


def is_header(block: bytes) -> bool:
    """Whether a block carries the checksum of a header."""
    try:
        written = _number(block[148:156])
    except ValueError:
        return False
    blanked = block[:148] + b" " * 8 + block[156:]
    # Some old writers summed signed bytes.
    return written == sum(blanked) or written == sum(b - 256 if b > 127 else b for b in blanked)


def parse_header(block: bytes, at: int, read: Callable[[int], bytes]) -> Member:
    """Parse the header of a member together with the extended headers before it.

    Args:
        block: the first of them.
        at: where it is in the archive.
        read: gives as many of the bytes behind it, fewer at the end of the archive; afterwards the
            archive stands at the member's first byte.

    Raises:
        TarError: damage, or a member that is refused.
    """
    extended: dict[str, str] = {}
    while True:
        if len(block) < BLOCK_BYTES:
            raise CutShortError(f"cut short: it ends inside the header at byte {at:,}")
        if not is_header(block):
            raise TarError(f"damaged: no tar header at byte {at:,}")
        kind, size = block[156:157], _size(block, at)
        if kind not in (_GNU_LONG_NAME, _GNU_LONG_LINK, _PAX, _PAX_GLOBAL):
            return _member(block, kind, size, extended, at)
        if size > _MOST_EXTENSION_BYTES:
            raise TarError(f"damaged: extended header of {size:,} bytes at byte {at:,}")
        text = read(_padded(size))
        if len(text) < _padded(size):
            raise CutShortError(f"cut short: it ends inside the extended header at byte {at:,}")
        text, at = text[:size], at + BLOCK_BYTES + _padded(size)
        if kind == _PAX_GLOBAL:
            # What it says of all members is of no use for one, and none need follow.
            return Member("", b"", at, 0, is_file=False)
        if kind == _GNU_LONG_NAME:
            extended["path"] = text.rstrip(b"\0").decode(errors="surrogateescape")
        elif kind == _PAX:
            extended |= _pax_records(text, at - _padded(size))
        block = read(BLOCK_BYTES)


def _member(block: bytes, kind: bytes, size: int, extended: dict[str, str], at: int) -> Member:
    name = extended.get("path") or _plain_name(block)
    # Old writers marked folders by the name alone, which an extended header cannot vouch for.
    is_file = kind in _REGULAR and ("path" in extended or not name.endswith("/"))
    if any(keyword.startswith("GNU.sparse.") for keyword in extended):
        kind = b"S"
    if kind not in _REGULAR and kind != _FOLDER:
        what = _REFUSED.get(kind, f"of unknown kind {kind!r}")
        raise TarError(f"member {name[:100]!r} is {what}", "only files are expected")
    if kind == _FOLDER:
        size = 0
    elif "size" in extended:
        size = _pax_size(extended["size"], size, at)
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or (is_file and not parts[-1]):
        raise TarError(f"member {name[:100]!r} leads out of the archive", "do not trust it")
    inside = "/".join(part for part in parts if part not in ("", "."))
    return Member(inside, block[:100].rstrip(b"\0"), at + BLOCK_BYTES, size, is_file)


def _plain_name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    # GNU tars hold times where ustar has a prefix.
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode(errors="surrogateescape")


def _size(block: bytes, at: int) -> int:
    try:
        size = _number(block[124:136])
    except ValueError:
        size = -1
    if not 0 <= size < _MOST_MEMBER_BYTES:
        raise TarError(f"damaged: impossible size in the header at byte {at:,}")
    return size


def _number(field: bytes) -> int:
    """A number: octal text, or GNU's binary form; `ValueError` if neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b"\0 ")
    if text.strip(b"01234567"):
        raise ValueError(f"not an octal number: {field!r}")
    return int(text or b"0", 8)


def _pax_size(text: str, plain: int, at: int) -> int:
    """A size from an extended header, which no checksum covers: it must be one that is needed."""
    size = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not 0 <= size < _MOST_MEMBER_BYTES or (size < _MOST_OCTAL_BYTES and size != plain):
        raise TarError(f"damaged extended header: size {text[:20]!r} before byte {at:,}")
    return size


def _pax_records(text: bytes, at: int) -> dict[str, str]:
    """The ``length keyword=value`` lines of an extended header."""
    found: dict[str, str] = {}
    while text:
        digits, space, _ = text.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 10 else 0
        keyword, equals, value = text[len(digits) + 1 : length].partition(b"=")
        if not (space and keyword and equals and value.endswith(b"\n") and length <= len(text)):
            raise TarError(f"damaged extended header at byte {at:,}")
        found[keyword.decode(errors="replace")] = value[:-1].decode(errors="surrogateescape")
        text = text[length:]
    return found


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
