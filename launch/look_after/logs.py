"""The end of a log file."""

import os
from pathlib import Path

LOG_TAIL_LINES = 20
BLOCK_BYTES = 64 * 1024


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of a log, read from its end; nothing where there is no log."""
    try:
        return last_lines(path, lines)
    except FileNotFoundError:
        return []


def last_lines(path: Path, count: int, *, end: int | None = None) -> list[str]:
    """The last lines of a text file, of which little more is read; undecodable bytes as �.

    Args:
        path: of the file.
        count: of lines.
        end: take the file as this many bytes long.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.seek(0, os.SEEK_END) if end is None else end
        found = b""
        # One more than asked for: the first may be a part.
        while start > 0 and found.count(b"\n") <= count:
            size = min(BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            found = file.read(size) + found
    lines = found.decode("utf-8", errors="replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines[-count:] if count else []
