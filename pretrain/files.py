"""Small files and directories, written so that a crash leaves the old or the new. No torch."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def replace_text(path: Path, text: str) -> None:
    """Write a small file, UTF-8, as `replace_bytes` does."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a small file so that readers see the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; the old content is still there.
    """
    staged = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with staged.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def make_private(path: Path) -> None:
    """Make a directory and the missing ones above it for their owner alone, whatever the umask.

    Raises:
        OSError: one cannot be made, or something else has the name.
    """
    if path.is_dir():
        return
    make_private(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def replace_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a small JSON object as `replace_text` does, and the directory for it.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(value, indent=1) + "\n")


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON object to a file of lines, whole and on the disk before this returns.

    A line that somebody else left torn costs itself only.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        length = os.fstat(descriptor).st_size
        torn = length > 0 and os.pread(descriptor, 1, length - 1) != b"\n"
        os.write(descriptor, (("\n" if torn else "") + json.dumps(record) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON object; None where the file is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk.

    Raises:
        OSError: the disk says otherwise.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
