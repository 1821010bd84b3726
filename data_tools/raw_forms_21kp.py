"""Miniatures of the forms ImageNet-21K-P is handed out in, with their true structure."""

import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_tools.imagenet1k import SMALL_21K, TRAIN_21K, VAL_21K
from data_tools.raw_forms import Synsets, add_class_folders, synsets, write_folders

ARCHIVE_FOLDER = "imagenet21k_resized"


@dataclass(frozen=True)
class Resized:
    """The files of a miniature: folder → WordNet id → file name → content."""

    folders: Mapping[str, Synsets]


def resized(images_per_class: int, seed: int, classes: int) -> Resized:
    """Painted pictures: the last class is a small one, two of each other are for validation."""
    made = synsets(images_per_class, seed, classes)
    *large, small = made
    train = {wnid: dict(list(made[wnid].items())[:-2]) for wnid in large}
    val = {wnid: dict(list(made[wnid].items())[-2:]) for wnid in large}
    return Resized({SMALL_21K: {small: made[small]}, TRAIN_21K: train, VAL_21K: val})


def write_archive(path: Path, content: Resized) -> None:
    """``imagenet21k_resized.tar.gz``, or without compression where that is the name's end."""
    mode = "w:gz" if path.name.endswith(".gz") else "w"
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as tar:
        for folder, files in content.folders.items():
            add_class_folders(tar, f"{ARCHIVE_FOLDER}/{folder}", files)


def write_directory(root: Path, content: Resized) -> None:
    """The archive, unpacked."""
    for folder, files in content.folders.items():
        write_folders(root / folder, files)


FORMS_21KP: Mapping[str, Callable[[Path, Resized], None]] = {
    "imagenet21k_resized.tar.gz": write_archive,
    "imagenet21k_resized.tar": write_archive,
    ARCHIVE_FOLDER: write_directory,
}
"""File or directory name → what writes it."""
