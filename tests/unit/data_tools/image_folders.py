"""Image folders to build from."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def image_bytes(seed: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """A small image file of random content."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8 + seed % 5, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def write_class(folder: Path, count: int, first_seed: int = 0) -> None:
    """A class folder of that many JPEGs."""
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{folder.name}_{i}.JPEG").write_bytes(image_bytes(first_seed + i))


def write_folder(root: Path) -> Path:
    """Three classes: 8 training and 3 validation images each."""
    for label, name in enumerate(("n03", "n01", "n02")):
        write_class(root / "train" / name, 8, 100 * label)
        write_class(root / "val" / name, 3, 100 * label + 50)
    return root
