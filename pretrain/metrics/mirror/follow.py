"""Following a file of JSON lines that grows, is cut back, or loses a torn end."""

import os
from pathlib import Path
from typing import IO, Any

from pretrain.metrics.jsonl import parse_line


class Follower:
    """Reads what was written to a file since it last looked.

    Args:
        path: of the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._pending = b""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the new whole objects, and whether the file was replaced, so that all are new."""
        replaced = self._look()
        if self._file is None:
            return [], replaced
        *lines, self._pending = (self._pending + self._file.read()).split(b"\n")
        parsed = map(parse_line, lines)
        return [value for value in parsed if value is not None], replaced

    def _look(self) -> bool:
        """Open the file, or the one that took its place; say whether one did."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        if self._file is not None:
            have = os.fstat(self._file.fileno())
            if (have.st_dev, have.st_ino) == (found.st_dev, found.st_ino):
                if found.st_size < self._file.tell():  # a torn end was removed
                    self._file.seek(found.st_size)
                    self._pending = b""
                return False
            self._file.close()
            self._pending = b""
            self._file = self._path.open("rb")
            return True
        self._file = self._path.open("rb")
        return False
