"""JSON lines: appended whole, read tolerantly, cut back atomically.

A line torn by a kill costs that line and nothing else: readers skip what is not a JSON object, and
whoever opens a file to append first removes it.
"""

import json
import math
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pretrain.files import replace_text


def plain(value: object) -> object:
    """A value strict JSON can hold: non-finite numbers become None, mappings and lists are copied.

    Anything JSON does not know becomes its text.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The object of one line; None if the line is torn or is not an object."""
    try:
        value = json.loads(line.decode())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole object of a file, in order; an absent file has none."""
    if not path.is_file():
        return []
    parsed = (parse_line(line) for line in path.read_bytes().splitlines())
    return [value for value in parsed if value is not None]


def with_value(records: Iterable[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The records that hold a number under ``name``."""
    return [record for record in records if record.get(name) is not None]


def series(records: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of every record that holds a number under ``name``."""
    return [(record["step"], record[name]) for record in with_value(records, name)]


@dataclass(frozen=True)
class CutBack:
    """What `cut_back` found.

    Attributes:
        kept: the objects that stay, in order.
        removed: whole lines removed because their step comes again.
        damaged: lines removed because they could not be read.
    """

    kept: tuple[dict[str, Any], ...]
    removed: int
    damaged: int


def cut_back(path: Path, last_step: int) -> CutBack:
    """Remove every line after ``last_step``, and every damaged line, in one atomic replacement.

    A file that needs no change is not touched. An absent file has nothing to cut.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    kept: list[dict[str, Any]] = []
    kept_lines: list[bytes] = []
    damaged = 0
    for line in lines:
        value = parse_line(line) if line.endswith(b"\n") else None
        if value is None or not isinstance(value.get("step"), int):
            damaged += 1
        elif value["step"] <= last_step:
            kept.append(value)
            kept_lines.append(line)
    if len(kept_lines) < len(lines):
        replace_text(path, b"".join(kept_lines).decode())
    return CutBack(tuple(kept), len(lines) - len(kept) - damaged, damaged)


def cut_torn_end(path: Path) -> None:
    """Remove the unfinished last line that a kill may have left; an absent file has none."""
    if not path.is_file():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)


class LineWriter:
    """Appends objects to a file, one line each.

    What the disk does not take is kept in memory, in order, and tried again with the next line: a
    full disk must not end a run whose checkpoints may lie elsewhere. Safe to use from two threads.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._pending = b""
        self._lock = threading.Lock()

    def append(self, value: Mapping[str, object]) -> OSError | None:
        """Append one object; return why not everything appended is with the system yet."""
        line = json.dumps(plain(value), allow_nan=False, ensure_ascii=False).encode()
        with self._lock:
            self._pending += line + b"\n"
        try:
            self._write()
        except OSError as error:
            return error
        return None

    def _write(self) -> None:
        with self._lock:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]

    def sync(self) -> None:
        """Wait until everything appended is on the disk.

        Raises:
            OSError: it is not.
        """
        try:
            self._write()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error

    def close(self) -> None:
        """Sync and close; closing again does nothing.

        Raises:
            OSError: not everything is on the disk.
        """
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
