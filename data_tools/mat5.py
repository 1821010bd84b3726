"""Reads the table of synsets in ILSVRC's ``meta.mat``: the little of MATLAB 5 files it takes.

The format: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf. A file is a header of
128 bytes and elements, each a type, a length and data; here one element, usually zlib-compressed,
holds a struct array named ``synsets``.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pretrain.errors import DataError

MAX_BYTES = 64 * 2**20
_HEADER_BYTES = 128
_INT8, _UINT8, _UTF8, _MATRIX, _COMPRESSED = 1, 2, 16, 14, 15
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_STRUCT_CLASS, _CHAR_CLASS = 2, 4
_LARGEST_NUMERIC_CLASS = 15


@dataclass(frozen=True)
class Synset:
    """A row of the table.

    Attributes:
        ilsvrc_id: 1 to 1,000 for the classes of the challenge; higher for what lies above them.
        wnid: WordNet id.
        words: names in English, separated by commas.
    """

    ilsvrc_id: int
    wnid: str
    words: str


class _MalformedError(Exception):
    """What is wrong with the file."""


_MALFORMED = (_MalformedError, zlib.error, struct.error, IndexError, ValueError, OverflowError)


def read_synsets(data: bytes, where: str) -> list[Synset]:
    """Read the table.

    Args:
        data: the file.
        where: its name, for messages.

    Raises:
        DataError: it is no such file.
    """
    try:
        return _synsets(data)
    except _MALFORMED as error:
        raise DataError(
            f"{where}: not the meta.mat of ILSVRC2012: {error}; fetch the development kit again"
        ) from None


def _synsets(data: bytes) -> list[Synset]:
    if len(data) < _HEADER_BYTES or data[124:128] != b"\x00\x01IM":
        raise _MalformedError("no header of a MATLAB 5 file")
    for kind, body in _elements(data[_HEADER_BYTES:]):
        if kind == _COMPRESSED:
            inflate = zlib.decompressobj()
            plain = inflate.decompress(body, MAX_BYTES)
            if not inflate.eof:
                raise _MalformedError(f"cut short, or larger than {MAX_BYTES // 2**20} MiB")
            for inner_kind, inner in _elements(plain):
                rows = _table(inner) if inner_kind == _MATRIX else None
                if rows is not None:
                    return rows
        elif kind == _MATRIX:
            rows = _table(body)
            if rows is not None:
                return rows
    raise _MalformedError("no struct array named synsets")


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(data):
        first, count = struct.unpack_from("<II", data, at)
        if first >> 16:  # a small element: its data stand where the length would
            kind, count, start, after = first & 0xFFFF, first >> 16, at + 4, at + 8
        else:
            kind, start = first, at + 8
            after = start + (count if kind == _COMPRESSED else -(-count // 8) * 8)
        if start + count > len(data):
            raise _MalformedError("cut short")
        yield kind, data[start : start + count]
        at = after


def _table(body: bytes) -> list[Synset] | None:
    """The rows of a matrix element; None where it is another variable."""
    parts = list(_elements(body))
    if len(parts) < 5 or parts[2][1] != b"synsets" or parts[0][1][0] != _STRUCT_CLASS:
        return None
    (width,) = struct.unpack("<i", parts[3][1])
    if width < 1:
        raise _MalformedError("field names without width")
    names = [
        parts[4][1][i : i + width].split(b"\0")[0].decode("ascii")
        for i in range(0, len(parts[4][1]), width)
    ]
    missing = {"ILSVRC2012_ID", "WNID", "words"} - set(names)
    cells = parts[5:]
    if missing or len(cells) % len(names):
        raise _MalformedError(f"fields {', '.join(names)}")
    rows: list[Synset] = []
    for at in range(0, len(cells), len(names)):
        row = dict(zip(names, (cell for _, cell in cells[at : at + len(names)]), strict=True))
        number, wnid, words = (_value(row[key]) for key in ("ILSVRC2012_ID", "WNID", "words"))
        if not isinstance(number, float) or not isinstance(wnid, str):
            raise _MalformedError(f"row {len(rows) + 1}: ids {number!r} and {wnid!r}")
        rows.append(Synset(int(number), wnid, str(words)))
    return rows


def _value(cell: bytes) -> str | float:
    """A text or the first number of a matrix element."""
    parts = list(_elements(cell))
    if len(parts) < 4:
        return ""
    array_class, (kind, data) = parts[0][1][0], parts[3]
    if array_class == _CHAR_CLASS:
        narrow = kind in (_INT8, _UINT8, _UTF8)
        return data.decode("utf-8" if narrow else "utf-16-le")
    if array_class > _LARGEST_NUMERIC_CLASS or kind not in _NUMBERS:
        raise _MalformedError(f"a value of class {array_class}, type {kind}")
    return float(struct.unpack_from(f"<{_NUMBERS[kind]}", data)[0])
