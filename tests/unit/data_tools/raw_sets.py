"""Sets in the published forms, built the way a user does, and what lies in a directory."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from data_tools.build import main

Content = TypeVar("Content")


def build(source_name: str, source: Path, destination: Path, *options: str) -> int:
    """Build small shards with one worker, unless the options say otherwise."""
    arguments = ["--shard-mib", "0.05", "--workers", "1", *options]
    return main([source_name, str(source), str(destination), *arguments])


def digests(directory: Path, without: str | None = None) -> dict[str, str]:
    """The sha256 of every file of a directory, but of the one named."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
        if path.name != without
    }


def write_forms(
    root: Path, forms: Mapping[str, Callable[[Path, Content], object]], content: Content
) -> Path:
    """Write the same content in every form, each below its name."""
    for name, write in forms.items():
        write(root / name, content)
    return root
