"""Small shard sets of real JPEGs, built as users build them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.build import build
from data_tools.sources import imagefolder
from pretrain.data.manifest import Manifest, read_manifest

CLASSES = ("n00000001", "n00000002", "n00000003")


def jpeg(seed: int, height: int = 48, width: int = 40, **options) -> bytes:
    """A JPEG of smooth random content."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def write_folder(root: Path, train_per_class: int = 14, validation_per_class: int = 5) -> Path:
    """An image folder of three classes with train/ and val/."""
    for split, count in (("train", train_per_class), ("val", validation_per_class)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                data = jpeg(1000 * label + i + (split == "val") * 500, 40 + i, 60 - i)
                (folder / f"{name}_{i}.JPEG").write_bytes(data)
    return root


def build_set(root: Path, **counts: int) -> Manifest:
    """Pack such a folder into shards of about four images."""
    source = imagefolder(
        write_folder(root / "images", **counts), class_names_file=None, eval_per_class=None, seed=0
    )
    build(source, root / "set", name="tiny", shard_mib=0.015, seed=0, workers=1)
    return read_manifest(root / "set")
