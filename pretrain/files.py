"""Small files and directories, written so that a crash leaves the old or the new. No torch."""

import json
import os
from pathlib import Path
from typing import Any


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that readers see the old text or the new, never a part.

    Raises:
        OSError: it cannot be written; the old text is still there.
    """
    staged = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with staged.open("w", encoding="utf-8") as file:
        file.write(text)
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
