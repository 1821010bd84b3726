"""What there is to pack: the labelled images of a source, as plain lists.

A source is read by one function that returns a `Source`; `imagefolder` is the one for directories
of class folders. Packing knows nothing but `Source`.
"""

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_tools.names import Names, joined, shared
from pretrain.data.manifest import Manifest
from pretrain.errors import DataError

CLASS_NAMES_FILE = "classes.txt"
_SPLIT_FOLDERS = {"val": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, by its path in the source, and why."""

    path: str
    reason: str


class Files(Protocol):
    """Paths by their position."""

    def __getitem__(self, position: int, /) -> Path: ...


@dataclass(frozen=True)
class Places:
    """Where images lie inside archives, or in files under other names than theirs.

    Attributes:
        files: the archives.
        file: unsigned [images], position in ``files``, of as few bytes as will do.
        offset: int64 [images], of the first byte.
        deflated: uint32 [images], bytes an image takes there if it is deflated, else 0; None where
            none is.
    """

    files: Files
    file: NDArray[np.unsignedinteger]
    offset: NDArray[np.int64]
    deflated: NDArray[np.uint32] | None


@dataclass(frozen=True)
class Images:
    """The images of one split: arrays, as there are millions.

    Attributes:
        folder: directory the names start from, where each image is a file of its own.
        heads: by label, what the names of a class begin with; UTF-8, as the rest of them.
        cores: bytes [images], the rest of the names. They name the images in the shards and are
            sorted within a class.
        ends: by label, what the names of a class end with.
        labels: int32 [images].
        sizes: uint32 [images], bytes as stored in the source.
        places: where they lie, if not below ``folder``.
        flat: whether the files lie in ``folder`` itself, under the last parts of their names.
    """

    folder: Path
    heads: tuple[bytes, ...]
    cores: NDArray[np.bytes_]
    ends: tuple[bytes, ...]
    labels: NDArray[np.int32]
    sizes: NDArray[np.uint32]
    places: Places | None = None
    flat: bool = False

    def name(self, position: int) -> bytes:
        """The name of one."""
        label = int(self.labels[position])
        return self.heads[label] + bytes(self.cores[position]) + self.ends[label]

    @property
    def paths(self) -> list[str]:
        """The names as texts."""
        return [os.fsdecode(self.name(position)) for position in range(len(self.labels))]

    def subset(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Images":
        """Some of them, by mask or position."""
        places = self.places
        if places is not None:
            packed = None if places.deflated is None else places.deflated[chosen]
            places = Places(places.files, places.file[chosen], places.offset[chosen], packed)
        return dataclasses.replace(
            self,
            cores=self.cores[chosen],
            labels=self.labels[chosen],
            sizes=self.sizes[chosen],
            places=places,
        )


@dataclass(frozen=True)
class Source:
    """Labelled images.

    Attributes:
        root: what was read, for messages.
        classes: ids in the order of their labels.
        class_names: a readable name per class, the id itself where none is known.
        splits: name → images.
        skipped: files that were seen to be unusable already when they were listed.
        imageless: ids of classes that have no images and should not.
    """

    root: Path
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: dict[str, Images]
    skipped: tuple[Skipped, ...] = ()
    imageless: frozenset[str] = frozenset()

    @property
    def listed(self) -> int:
        """Images listed in all splits."""
        return sum(len(images.labels) for images in self.splits.values())


def imagefolder(
    root: Path,
    *,
    class_names_file: Path | None,
    eval_per_class: int | None,
    seed: int,
    numbered_by: Manifest | None = None,
) -> Source:
    """List a directory of class folders, or one with such directories for training and evaluation.

    ``root`` holds ``train/`` and any of ``val/``, ``validation/`` and ``test/`` (which stands for
    validation where there is no other), each with one folder per class; or it holds the class
    folders themselves. Class ids are the folders' names, sorted. Hidden files are left out.

    Args:
        root: the directory.
        class_names_file: lines ``id<TAB>name``; None takes ``root/classes.txt`` where it exists.
        eval_per_class: move this many images per class, chosen by ``seed``, from training to a
            validation split of their own.
        seed: for that choice.
        numbered_by: folders are named by number, which is the label of a class in this shard set;
            ids and names are taken from it, as in ImageNet-V2. None takes the folders' names.

    Raises:
        DataError: the source is missing or empty, has no class folders, a class has no images,
            the splits disagree on the classes, the file of names is malformed, or folders are not
            numbered as asked.
    """
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root}: {state}; expected a directory of class folders")
    folders = _split_folders(root)
    train_folder = folders["train"]
    classes = tuple(_folders(train_folder))
    if not classes:
        raise DataError(
            f"{train_folder}: no class folders; expected one folder per class with its images in it"
        )
    splits = {name: _list_split(root, folder, classes) for name, folder in folders.items()}
    _check_every_class(train_folder, splits["train"], classes)
    if eval_per_class is not None:
        if len(splits) > 1:
            raise DataError(
                f"{root}: has {', '.join(sorted(set(splits) - {'train'}))} images of its own; "
                "leave --eval-per-class out"
            )
        splits = _carve(splits["train"], classes, eval_per_class, seed)
    names = _class_names(root, class_names_file)
    if names and not names.keys() & set(classes):
        raise DataError(
            f"{class_names_file or root / CLASS_NAMES_FILE}: names none of the {len(classes)} "
            f"classes; expected lines such as {classes[0]}<TAB>name"
        )
    class_names = tuple(names.get(item, item) for item in classes)
    if numbered_by is not None:
        labels = [_label(folder, train_folder, numbered_by) for folder in classes]
        classes = tuple(numbered_by.classes[label] for label in labels)
        class_names = tuple(numbered_by.class_names[label] for label in labels)
    return Source(root, classes, class_names, splits)


def _label(folder: str, parent: Path, numbered_by: Manifest) -> int:
    """The label that a folder's name is."""
    last = len(numbered_by.classes) - 1
    if not (folder.isascii() and folder.isdecimal() and str(int(folder)) == folder):
        raise DataError(
            f"{parent / folder}: expected a folder named 0 to {last}, or no --numbered-by"
        )
    if int(folder) > last:
        raise DataError(
            f"{parent / folder}: {numbered_by.location} has the labels 0 to {last} only; give the "
            "shard set that the numbers are labels of"
        )
    return int(folder)


def _split_folders(root: Path) -> dict[str, Path]:
    if not (root / "train").is_dir():
        found = [name for name in _SPLIT_FOLDERS if (root / name).is_dir()]
        if found:
            raise DataError(f"{root}: has {found[0]}/ but no train/; expected both")
        return {"train": root}
    if (root / "val").is_dir() and (root / "validation").is_dir():
        raise DataError(f"{root}: has both val/ and validation/; expected one of them")
    folders = {"train": root / "train"}
    for folder, split in _SPLIT_FOLDERS.items():
        if (root / folder).is_dir():
            alone = folder == "test" and "validation" not in folders
            folders["validation" if alone else split] = root / folder
    return folders


def _folders(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{directory}: cannot be listed: {error.strerror}") from None
    return sorted(names)


def _list_split(root: Path, folder: Path, classes: tuple[str, ...]) -> Images:
    found = _folders(folder)
    unknown = [name for name in found if name not in set(classes)]
    if unknown:
        raise DataError(
            f"{folder}: {len(unknown)} class folders that training has not, such as {unknown[0]}"
        )
    names: list[Names] = []
    sizes: list[NDArray[np.uint32]] = []
    for name in classes:
        files = sorted(_files(folder / name, root)) if name in found else []
        names.append(shared([os.fsencode(path) for path, _ in files]))
        # What is larger is left out later.
        stored = [min(size, 2**32 - 1) for _, size in files]
        sizes.append(np.array(stored, dtype=np.uint32))
    if not any(map(len, sizes)):
        raise DataError(f"{folder}: no files in its class folders; expected images")
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), list(map(len, sizes)))
    heads, cores, ends = joined(names)
    return Images(root, heads, cores, ends, labels, np.concatenate(sizes))


def _files(directory: Path, root: Path) -> Iterable[tuple[str, int]]:
    """Relative path and size of every file below a class folder."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(Path(entry.path), root)
                elif entry.is_file():
                    yield os.path.relpath(entry.path, root), entry.stat().st_size
    except OSError as error:
        raise DataError(f"{directory}: cannot be listed: {error.strerror}") from None


def _check_every_class(folder: Path, images: Images, classes: tuple[str, ...]) -> None:
    counts = np.bincount(images.labels, minlength=len(classes))
    empty = [classes[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(
            f"{folder}: {len(empty)} class folders without files, such as {empty[0]}; fill or "
            "remove them: every folder becomes a class"
        )


def _carve(
    train: Images, classes: tuple[str, ...], eval_per_class: int, seed: int
) -> dict[str, Images]:
    """Split off ``eval_per_class`` images of every class."""
    counts = np.bincount(train.labels, minlength=len(classes))
    small = np.flatnonzero(counts <= eval_per_class)
    if eval_per_class < 1 or len(small):
        what = f"; class {classes[small[0]]} has {counts[small[0]]}" if len(small) else ""
        raise DataError(
            f"--eval-per-class: expected at least 1 and fewer than every class has, got "
            f"{eval_per_class}{what}"
        )
    chosen = draw_per_class(train.labels, np.full(len(classes), eval_per_class), seed)
    return {"train": train.subset(~chosen), "validation": train.subset(chosen)}


def draw_per_class(
    labels: NDArray[np.int32], wanted: NDArray[np.int64], seed: int
) -> NDArray[np.bool_]:
    """Choose ``wanted[label]`` images of each class: mask [images], fixed by the seed."""
    counts = np.bincount(labels, minlength=len(wanted))
    draws = np.random.Philox(key=[seed, 1]).random_raw(len(labels))
    by_class = np.lexsort((draws, labels))
    rank_in_class = np.empty(len(by_class), dtype=np.int64)
    rank_in_class[by_class] = np.arange(len(by_class)) - np.repeat(
        np.cumsum(counts) - counts, counts
    )
    return rank_in_class < wanted[labels]


def _class_names(root: Path, file: Path | None) -> dict[str, str]:
    if file is None:
        file = root / CLASS_NAMES_FILE
        if not file.is_file():
            return {}
    names: dict[str, str] = {}
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        identifier, tab, name = line.partition("\t")
        if not tab or not identifier.strip() or not name.strip():
            raise DataError(f"{file}:{number}: expected id<TAB>name, got {line[:80]!r}")
        names[identifier.strip()] = name.strip()
    return names


def read_lines(file: Path) -> list[str]:
    """The lines of a text file in UTF-8.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: expected text in UTF-8, found other bytes") from None
