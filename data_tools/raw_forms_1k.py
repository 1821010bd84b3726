"""Miniatures of the forms ImageNet-1K is handed out in, with their true structure."""

import csv
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_tools.imagenet1k import (
    DEVKIT,
    KAGGLE_DATA,
    KAGGLE_NAMES,
    KAGGLE_TRUTH,
    TRAIN_TAR,
    VAL_TAR,
)
from data_tools.painting import KINDS
from data_tools.raw_forms import Synsets, add_file, synsets, write_fall11, write_folders


@dataclass(frozen=True)
class Ilsvrc:
    """The files of a miniature.

    Attributes:
        train: WordNet id → file name → content.
        validation: file name → WordNet id and content.
    """

    train: Synsets
    validation: Mapping[str, tuple[str, bytes]]


def ilsvrc(images_per_class: int, seed: int, classes: int) -> Ilsvrc:
    """Painted pictures; two per class are for validation, in an order that mixes the classes."""
    train = synsets(images_per_class, seed, classes)
    held = synsets(6, seed + 1, classes)
    pairs = [(wnid, list(files.values())[i]) for i in (4, 5) for wnid, files in held.items()]
    validation = {
        f"ILSVRC2012_val_{number:08d}.JPEG": pair for number, pair in enumerate(pairs, start=1)
    }
    return Ilsvrc(train, validation)


def write_tars(root: Path, content: Ilsvrc) -> None:
    """``ILSVRC2012_img_train.tar``, ``ILSVRC2012_img_val.tar`` and the development kit."""
    root.mkdir(parents=True)
    write_fall11(root / TRAIN_TAR, content.train)
    with tarfile.open(root / VAL_TAR, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, (_, data) in content.validation.items():
            add_file(tar, name, data)
    # The kit numbers classes in an order of its own, and knows synsets that are no class.
    numbered = list(reversed(list(content.train)))
    names = {kind.wnid: kind.name for kind in KINDS}
    rows = [(i, wnid, names[wnid]) for i, wnid in enumerate(numbered, start=1)]
    rows.append((len(rows) + 1, "n00001740", ""))
    truth = [numbered.index(wnid) + 1 for wnid, _ in content.validation.values()]
    with tarfile.open(root / f"{DEVKIT}.tar.gz", "w:gz", format=tarfile.GNU_FORMAT) as tar:
        add_file(tar, f"{DEVKIT}/readme.txt", b"miniature\n")
        add_file(tar, f"{DEVKIT}/data/meta.mat", meta_mat(rows))
        text = "".join(f"{number}\n" for number in truth)
        name = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
        add_file(tar, name, text.encode())


def write_kaggle(root: Path, content: Ilsvrc) -> None:
    """The Kaggle layout with its tables."""
    write_folders(root / KAGGLE_DATA / "train", content.train)
    (root / KAGGLE_DATA / "val").mkdir()
    with (root / KAGGLE_TRUTH).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["ImageId", "PredictionString"])
        for name, (wnid, data) in reversed(list(content.validation.items())):
            (root / KAGGLE_DATA / "val" / name).write_bytes(data)
            table.writerow([name.removesuffix(".JPEG"), f"{wnid} 1 2 30 40 "])
    names = {kind.wnid: kind.name for kind in KINDS}
    lines = "".join(f"{wnid} {names[wnid]}\n" for wnid in content.train)
    (root / KAGGLE_NAMES).write_text(lines, encoding="utf-8")


def write_image_folder(root: Path, content: Ilsvrc) -> None:
    """``train/`` and ``val/`` with a folder for each class."""
    write_folders(root / "train", content.train)
    by_class: dict[str, dict[str, bytes]] = {}
    for name, (wnid, data) in content.validation.items():
        by_class.setdefault(wnid, {})[name] = data
    write_folders(root / "val", by_class)


def write_swin_zips(root: Path, content: Ilsvrc) -> None:
    """``train.zip`` and ``val.zip`` with their tables; some members are deflated, as zip does."""
    root.mkdir(parents=True)
    classes = sorted(content.train)
    train = {
        f"{wnid}/{name}": (wnid, data)
        for wnid, files in content.train.items()
        for name, data in files.items()
    }
    for split, files in (("train", train), ("val", content.validation)):
        lines: list[str] = []
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for number, (name, (wnid, data)) in enumerate(files.items()):
                info = zipfile.ZipInfo(name)
                info.compress_type = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2]
                archive.writestr(info, data)
                lines.append(f"{name}\t{classes.index(wnid)}\n")
        (root / f"{split}_map.txt").write_text("".join(lines), encoding="utf-8")


FORMS_1K: Mapping[str, Callable[[Path, Ilsvrc], None]] = {
    "tars": write_tars,
    "kaggle": write_kaggle,
    "swin_zips": write_swin_zips,
    "folders": write_image_folder,
}
"""Directory name → what writes it."""


def meta_mat(rows: list[tuple[int, str, str]]) -> bytes:
    """A MATLAB 5 file with the table ``synsets``: id, WordNet id and words of each row."""
    width, fields = 32, ("ILSVRC2012_ID", "WNID", "words", "gloss")
    cells = b""
    for number, wnid, words in rows:
        cells += _matrix(6, (1, 1), _element(9, struct.pack("<d", number)))
        for text in (wnid, words, "painted"):
            cells += _matrix(4, (1, len(text)), _element(4, text.encode("utf-16-le")))
    names = b"".join(name.encode().ljust(width, b"\0") for name in fields)
    body = _small(5, struct.pack("<i", width)) + _element(1, names) + cells
    table = _matrix(2, (len(rows), 1), body, b"synsets")
    packed = zlib.compress(table)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    return head + struct.pack("<II", 15, len(packed)) + packed


def _matrix(array_class: int, shape: tuple[int, int], body: bytes, name: bytes = b"") -> bytes:
    flags = _element(6, struct.pack("<II", array_class, 0))
    return _element(14, flags + _element(5, struct.pack("<ii", *shape)) + _element(1, name) + body)


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def _small(kind: int, data: bytes) -> bytes:
    return struct.pack("<I", len(data) << 16 | kind) + data.ljust(4, b"\0")
