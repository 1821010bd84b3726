"""What several tests share: one small, real shard set."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.build import main as build

# Before triton is imported: on a GPU the kernels are tested compiled, elsewhere interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@dataclass(frozen=True)
class SmallShards:
    """A shard set of coloured noise.

    Attributes:
        path: its directory.
        classes: number of classes.
    """

    path: Path
    classes: int


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory) -> SmallShards:
    """Four classes of 24 training and 5 validation JPEGs, in several shards per split."""
    root = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("validation", 5)):
        for label in range(4):
            folder = root / "images" / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for index in range(count):
                size = rng.integers(40, 90, 2)
                pixels = rng.normal(60 + 45 * label, 30, (*size, 3)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.JPEG", quality=90)
    arguments = ["imagefolder", str(root / "images"), str(root / "shards"), "--name", "small"]
    assert build(arguments) == 0
    return SmallShards(root / "shards", 4)
