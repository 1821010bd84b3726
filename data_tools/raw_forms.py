"""Miniatures of the forms ImageNet is handed out in, with their true structure and their faults.

Every form of one edition holds the same files, so that tools can be tried on all of them.
"""

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.painting import KINDS, paint

Synsets = Mapping[str, Mapping[str, bytes]]
"""WordNet id → file name → content."""


def synsets(images_per_class: int, seed: int, classes: int) -> dict[str, dict[str, bytes]]:
    """Painted pictures named as in ImageNet-22K, with its faults.

    In the first class one file is a PNG, one gzip-compressed and one no image; in the second one
    is preceded by a block of NULs, when classes have at least four images.
    """
    made: dict[str, dict[str, bytes]] = {}
    for label, kind in enumerate(KINDS[:classes]):
        files: dict[str, bytes] = {}
        for i in range(images_per_class):
            random = np.random.default_rng([seed, 22, label, i])
            data = _encoded(paint(kind, random), "PNG" if (label, i) == (0, 1) else "JPEG")
            if (label, i) == (0, 2):
                data = gzip.compress(data, mtime=0)
            elif (label, i) == (0, 3):
                data = b"<html>gone</html>"
            elif (label, i) == (1, 3):
                data = bytes(512) + data
            files[f"{kind.wnid}_{10 * i + 7}.JPEG"] = data
        made[kind.wnid] = files
    return made


def write_fall11(path: Path, content: Synsets) -> None:
    """``fall11_whole.tar``: a tar of tars, one of which has a lone block of NULs in its midst."""
    names = list(content)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as outer:
        for wnid in names:
            data = _inner_tar(content[wnid])
            if wnid == names[-1] and len(content[wnid]) > 1:
                first = list(content[wnid].values())[-1]
                cut = 512 + -(-len(first) // 512) * 512
                data = data[:cut] + bytes(512) + data[cut:]
            add_file(outer, f"{wnid}.tar", data)


def write_winter21(path: Path, content: Synsets, *, of_folders: bool = False) -> None:
    """``winter21_whole.tar.gz``: below one folder, a tar or a folder for each synset."""
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as outer:
        if of_folders:
            add_class_folders(outer, "winter21_whole", content)
            return
        _add_folder(outer, "winter21_whole")
        for wnid, files in content.items():
            add_file(outer, f"winter21_whole/{wnid}.tar", _inner_tar(files))


def write_tars(root: Path, content: Synsets) -> None:
    """A directory of ``nXXXXXXXX.tar``."""
    root.mkdir(parents=True)
    for wnid, files in content.items():
        (root / f"{wnid}.tar").write_bytes(_inner_tar(files))


def write_folders(root: Path, content: Synsets) -> None:
    """A directory of folders ``nXXXXXXXX``."""
    for wnid, files in content.items():
        (root / wnid).mkdir(parents=True)
        for name, data in files.items():
            (root / wnid / name).write_bytes(data)


FORMS_22K: Mapping[str, Callable[[Path, Synsets], None]] = {
    "fall11_whole.tar": write_fall11,
    "winter21_whole.tar.gz": write_winter21,
    "winter21_folders.tar.gz": lambda path, content: write_winter21(path, content, of_folders=True),
    "tars": write_tars,
    "folders": lambda path, content: write_folders(path / "fall11_whole", content),
}
"""File or directory name → what writes it."""


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _inner_tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        # Archives are in no order that one could rely on.
        for name, data in reversed(list(files.items())):
            add_file(tar, name, data)
    return buffer.getvalue()


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a regular file to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def add_class_folders(tar: tarfile.TarFile, root: str, content: Synsets) -> None:
    """Append a folder that holds a folder for each class."""
    _add_folder(tar, root)
    for wnid, files in content.items():
        _add_folder(tar, f"{root}/{wnid}")
        for name, data in files.items():
            add_file(tar, f"{root}/{wnid}/{name}", data)


def _add_folder(tar: tarfile.TarFile, name: str) -> None:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    tar.addfile(info)
