"""Lists ImageNet-1K as the Hugging Face hub hands it out, whose file names end in the class.

Training images are ``n01440764_10026_n01440764.JPEG``, validation images
``ILSVRC2012_val_00000001_n01751748.JPEG``: no development kit is needed. They come in
``train_images_0.tar.gz`` to ``train_images_4.tar.gz`` and ``val_images.tar.gz``, which are read
where they lie once they are decompressed, or lie in folders of such names, or in ``train/`` and
``val/``, with or without folders of their classes. The published names go into the shards.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.archives import check_is_tar
from data_tools.class_orders import class_order, imageless
from data_tools.names import joined, shared
from data_tools.progress import progress_bar
from data_tools.raw import MAX_IMAGE_BYTES
from data_tools.sources import Images, Places, Skipped, Source
from data_tools.tars import FileExtent, walk
from pretrain.errors import DataError

_END = r"_(n[0-9]{8})\.(?:JPEG|jpeg|jpg|JPG)"
_NAMES = {
    "train": re.compile(r"((n[0-9]{8})_[0-9]+)" + _END),
    "validation": re.compile(r"(ILSVRC2012_val_[0-9]{8}())" + _END),
}
_PARTS = {
    "train": re.compile(r"train(?:_images(?:_[0-9]+)?)?(?:\.tar(?:\.gz)?)?"),
    "validation": re.compile(r"val(?:idation)?(?:_images)?(?:\.tar(?:\.gz)?)?"),
}
_LOOKED_AT = 20


@dataclass(frozen=True, slots=True)
class _Entry:
    """One image: its published name below its class, where it lies, and its size in bytes."""

    wnid: str
    name: bytes
    file: int
    offset: int
    size: int


@dataclass(frozen=True)
class _Files:
    """Paths of images that are files, made when asked for: as objects a million is a lot."""

    names: NDArray[np.bytes_]

    def __getitem__(self, position: int, /) -> Path:
        return Path(os.fsdecode(self.names[position]))


def find_hub(root: Path) -> dict[str, list[Path]] | None:
    """The archives or folders of each split, if this is ImageNet-1K with the hub's names.

    Raises:
        OSError: a directory cannot be listed.
    """
    for directory in (root, root / "data"):
        entries = sorted(directory.iterdir()) if directory.is_dir() else []
        parts = {
            split: [entry for entry in entries if pattern.fullmatch(entry.name)]
            for split, pattern in _PARTS.items()
        }
        archives = [path for path in parts["train"] if "_images" in path.name and path.is_file()]
        if archives or any(_is_named_so(path) for path in parts["train"] if path.is_dir()):
            return parts
    return None


def hub_1k(root: Path, parts: Mapping[str, list[Path]], *, order: str) -> Source:
    """List what `find_hub` found.

    Args:
        root: for messages, and the place names start from.
        parts: the archives or folders of each split.
        order: name of the class order, from `data_tools.class_orders`.

    Raises:
        DataError: an archive is compressed, damaged or missing, or the splits do not fit together.
    """
    packed = [path for found in parts.values() for path in found if path.name.endswith(".gz")]
    if packed:
        raise DataError(
            f"{packed[0]}: compressed, and only plain archives can be read where they lie; run "
            f"`gunzip {packed[0].parent}/*.tar.gz` first: images hardly shrink by it, so it takes "
            "no more room"
        )
    skipped: list[Skipped] = []
    listed = {split: _list(found, _NAMES[split], skipped) for split, found in parts.items()}
    for split, (entries, _) in listed.items():
        if not entries:
            raise DataError(
                f"{root}: no {split} images; expected train_images_0.tar, … and "
                "val_images.tar, or folders train/ and val/"
            )
    _check_complete(root, parts["train"], listed["validation"][0])
    classes = class_order(order, (entry.wnid for entry in listed["train"][0]))
    unknown = sorted({entry.wnid for entry in listed["validation"][0]} - set(classes))
    if unknown:
        raise DataError(
            f"{root}: {len(unknown)} classes of the validation images have no training images, "
            f"such as {unknown[0]}; fetch all of the training archives"
        )
    splits = {
        split: _images(root, entries, files, classes, skipped)
        for split, (entries, files) in listed.items()
    }
    return Source(root, classes, classes, splits, tuple(skipped), imageless(order))


def _check_complete(root: Path, train: list[Path], validation: list[_Entry]) -> None:
    """Refuse gaps in the numbers of training archives and of validation images."""
    ends = (re.search(r"(\d+)(?:\.tar)?$", path.name) for path in train)
    numbers = {int(end[1]) for end in ends if end is not None}
    gone = sorted(set(range(max(numbers, default=0))) - numbers)
    if gone:
        raise DataError(f"{root}: train_images_{gone[0]} is missing; fetch it too")
    numbers = {int(entry.name[-13:-5]) for entry in validation}
    gone = sorted(set(range(1, max(numbers))) - numbers)
    if gone:
        raise DataError(
            f"{root}: {len(gone):,} of {max(numbers):,} validation images are missing, such as "
            f"number {gone[0]}; fetch the rest"
        )


def _is_named_so(folder: Path) -> bool:
    """Whether a folder, or the first folder in it, holds files with the hub's names."""
    for _ in range(2):
        with os.scandir(folder) as listed:
            entries = list(islice((e for e in listed if not e.name.startswith(".")), _LOOKED_AT))
        if any(_NAMES["train"].fullmatch(entry.name) for entry in entries):
            return True
        folders = [entry.path for entry in entries if entry.is_dir()]
        if not folders:
            return False
        folder = Path(folders[0])
    return False


def _list(
    parts: list[Path], pattern: re.Pattern[str], skipped: list[Skipped]
) -> tuple[list[_Entry], "tuple[Path, ...] | _Files"]:
    """The images of a split, and the files they lie in."""
    entries: list[_Entry] = []
    archives = tuple(path for path in parts if path.is_file())
    stored: list[bytes] = []
    with progress_bar("listing", len(parts)) as advance:
        for path in parts:
            try:
                if path.is_file():
                    entries += _in_archive(path, archives.index(path), pattern, skipped)
                else:
                    for file, size in _in_folder(path):
                        match = _match(Path(file).name, size, pattern, skipped)
                        if match is not None:
                            entries.append(_entry(match, len(stored), 0, size))
                            stored.append(os.fsencode(file))
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}") from None
            advance(1)
    if archives and stored:
        raise DataError(
            f"{parts[0].parent}: holds archives ({archives[0].name}, …) and folders of one split; "
            "move one of the two away"
        )
    return entries, archives or _Files(np.array(stored))


def _in_archive(
    path: Path, number: int, pattern: re.Pattern[str], skipped: list[Skipped]
) -> Iterator[_Entry]:
    with path.open("rb") as file:
        check_is_tar(path, file)
        extent = FileExtent(file.fileno(), 0, path.stat().st_size)
        for member in walk(extent, str(path)):
            match = _match(member.name.rpartition("/")[2], member.bytes, pattern, skipped)
            if match is not None:
                yield _entry(match, number, member.offset, member.bytes)


def _in_folder(folder: Path) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _in_folder(Path(entry.path))
            elif entry.is_file():
                yield entry.path, entry.stat().st_size


def _match(
    name: str, size: int, pattern: re.Pattern[str], skipped: list[Skipped]
) -> re.Match[str] | None:
    """The parts of an image's name; otherwise why it is left out is noted."""
    match = None if name.startswith(".") else pattern.fullmatch(name)
    if match is None:
        if not name.startswith("."):
            skipped.append(Skipped(name, "its name is not that of an image and its class"))
    elif match[2] not in (match[3], ""):
        skipped.append(Skipped(name, f"its name says both {match[2]} and {match[3]}"))
    elif size > MAX_IMAGE_BYTES:
        skipped.append(Skipped(name, f"larger than {MAX_IMAGE_BYTES // 2**20} MiB"))
    else:
        return match
    return None


def _entry(match: re.Match[str], file: int, offset: int, size: int) -> _Entry:
    return _Entry(match[3], f"{match[3]}/{match[1]}.JPEG".encode(), file, offset, size)


def _images(
    root: Path,
    entries: list[_Entry],
    files: "tuple[Path, ...] | _Files",
    classes: tuple[str, ...],
    skipped: list[Skipped],
) -> Images:
    """In their one order: by label, then by name; of equal names the last is taken."""
    latest = {entry.name: entry for entry in entries}
    if len(latest) < len(entries):
        again = {entry.name for entry in entries if latest[entry.name] is not entry}
        skipped += [Skipped(name.decode(), "another of its name comes later") for name in again]
    by_class: dict[str, list[_Entry]] = {wnid: [] for wnid in classes}
    for entry in latest.values():
        by_class[entry.wnid].append(entry)
    ordered = [sorted(found, key=lambda entry: entry.name) for found in by_class.values()]
    heads, cores, ends = joined([shared([entry.name for entry in found]) for found in ordered])
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(found) for found in ordered])
    flat = [entry for found in ordered for entry in found]
    places = Places(
        files,
        np.array([entry.file for entry in flat], np.uint32),
        np.array([entry.offset for entry in flat], np.int64),
        None,
    )
    sizes = np.array([entry.size for entry in flat], np.uint32)
    return Images(root, heads, cores, ends, labels, sizes, places)
