"""ImageNet-22K as it is handed out: one archive of 21,841 (19,167) synsets, or what came out of it.

All these give the same source: ``fall11_whole.tar`` (a tar of tars), ``winter21_whole.tar.gz`` (a
compressed tar of tars, or of folders), a directory of ``nXXXXXXXX.tar``, a directory of folders
``nXXXXXXXX``.
"""

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.archives import (
    SYNSET,
    SYNSET_TAR,
    Listed,
    Listing,
    is_gzip,
    list_folders,
    list_plain,
)
from data_tools.class_orders import class_order, imageless
from data_tools.names import Names, joined, shared
from data_tools.sources import Images, Places, Skipped, Source, draw_per_class
from data_tools.spool import list_gzip
from pretrain.errors import DataError

_AGAIN = "another of its name comes later in the archive"
VALIDATION_SHARE = 10
"""A class gives images to a validation split when it has this many times as many."""


def imagenet22k(
    path: Path,
    *,
    order: str,
    eval_per_class: int | None,
    seed: int,
    spool: Path,
    workers: int,
) -> Source:
    """List ImageNet-22K.

    Args:
        path: the archive, or a directory of class archives or class folders.
        order: name of the class order, from `data_tools.class_orders`.
        eval_per_class: images of each class to hold out for validation; classes with fewer than
            `VALIDATION_SHARE` times as many give none.
        seed: for that choice.
        spool: directory for the images of a compressed archive.
        workers: processes.

    Raises:
        DataError: the path is nothing of this kind, or damaged, or not of the order named.
    """
    listing = list_synsets(path, spool=spool, workers=workers)
    if not listing.images:
        raise DataError(f"{path}: no image in it; expected nXXXXXXXX_N.JPEG in tars or folders")
    classes = class_order(order, (part.wnid for part in listing.images))
    folder = listing.images[0].file.parent if path.is_dir() else path.parent
    train, repeated = assemble(listing, classes, folder)
    skipped = (*listing.skipped, *repeated)
    splits = {"train": train}
    if eval_per_class is not None:
        splits = _hold_out(path, train, len(classes), eval_per_class, seed)
    return Source(path, classes, classes, splits, skipped, imageless(order))


def list_synsets(path: Path, *, spool: Path, workers: int) -> Listing:
    """List an archive of synsets, or a directory of class archives or class folders.

    Raises:
        DataError: the path is nothing of this kind, or damaged.
    """
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected an archive or a directory of synsets")
    if path.is_file():
        return list_archive(path, spool=spool, workers=workers)
    root, folders, tars = _synsets_in(path)
    if folders and tars:
        raise DataError(
            f"{root}: holds folders ({folders[0]}, …) and tars ({tars[0]}, …) of synsets; "
            "expected one of the two"
        )
    if folders:
        return list_folders(root, folders, workers)
    return list_plain([(root / name, name.removesuffix(".tar")) for name in tars], workers)


def list_archive(path: Path, *, spool: Path, workers: int, splits: Sequence[str] = ()) -> Listing:
    """List one archive, compressed or not.

    Args:
        path: the file.
        spool: directory for the images of a compressed archive.
        workers: processes.
        splits: as for `data_tools.archives.list_plain`.

    Raises:
        DataError: it is damaged, cut short or holds what is refused.
    """
    try:
        packed = is_gzip(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return list_gzip(path, spool, splits) if packed else list_plain([(path, None)], workers, splits)


def assemble(
    listing: Listing, classes: tuple[str, ...], folder: Path, *, flat: bool = False
) -> tuple[Images, list[Skipped]]:
    """Bring listed images into their one order: by label, then by name.

    Args:
        listing: the images; they are taken out of it, for there are millions.
        classes: ids in the order of their labels.
        folder: directory the names start from, for images that are files.
        flat: whether they lie in it without folders of their classes.

    Returns:
        The images, and those left out because another of the same name comes later.
    """
    by_class: dict[str, list[Listed]] = defaultdict(list)
    for part in listing.images:
        by_class[part.wnid].append(part)
    files = tuple(sorted({part.file for part in listing.images}))
    listing.images.clear()
    ordered: list[_Class] = []
    repeated: list[Skipped] = []
    for wnid in classes:
        found, again = _in_order(wnid, by_class.pop(wnid, []), files)
        ordered.append(found)
        repeated += [Skipped(os.fsdecode(name), _AGAIN) for name in again]
    heads, cores, ends = joined([one.names for one in ordered])
    counts = [len(one.sizes) for one in ordered]
    places = None
    if all(file.is_file() for file in files):
        deflated = np.concatenate([one.deflated for one in ordered])
        places = Places(
            files,
            np.concatenate([one.file for one in ordered]),
            np.concatenate([one.offsets for one in ordered]),
            deflated if deflated.any() else None,
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    sizes = np.concatenate([one.sizes for one in ordered])
    return Images(folder, heads, cores, ends, labels, sizes, places, flat), repeated


@dataclass(frozen=True)
class _Class:
    """The images of one class, sorted by name: as in `Images` and `Places`."""

    names: Names
    sizes: NDArray[np.uint32]
    file: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]
    deflated: NDArray[np.uint32]


def _in_order(
    wnid: str, parts: list[Listed], files: tuple[Path, ...]
) -> tuple[_Class, list[bytes]]:
    """Sort the images of a class; returns also the names of those that come again later."""
    names = [f"{wnid}/".encode() + name for part in parts for name in part.names.full()]
    last = {name: position for position, name in enumerate(names)}
    kept = [last[name] for name in sorted(last)]
    again = sorted(name for position, name in enumerate(names) if last[name] != position)
    small = np.min_scalar_type(len(files))
    numbers = [np.full(len(p.sizes), bisect_left(files, p.file), dtype=small) for p in parts]
    deflated = [np.zeros_like(p.sizes) if p.deflated is None else p.deflated for p in parts]

    def chosen(arrays: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *arrays])[kept]

    return (
        _Class(
            shared([names[position] for position in kept]),
            chosen([part.sizes for part in parts], np.uint32),
            chosen(numbers, small),
            chosen([part.offsets for part in parts], np.int64),
            chosen(deflated, np.uint32),
        ),
        again,
    )


def _synsets_in(path: Path) -> tuple[Path, list[str], list[str]]:
    """The directory with the synsets, their folders and their tars; one level may lie above."""
    try:
        below = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        for root in (path, *(entry for entry in below if entry.is_dir())):
            entries = sorted(root.iterdir())
            folders = [e.name for e in entries if SYNSET.fullmatch(e.name) and e.is_dir()]
            tars = [e.name for e in entries if SYNSET_TAR.fullmatch(e.name) and e.is_file()]
            if folders or tars:
                return root, folders, tars
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from None
    seen = ", ".join(entry.name for entry in below[:3]) or "nothing"
    raise DataError(
        f"{path}: no synsets in it, it holds {seen}; expected nXXXXXXXX.tar or folders nXXXXXXXX"
    )


def _hold_out(
    path: Path, train: Images, num_classes: int, per_class: int, seed: int
) -> dict[str, Images]:
    counts = np.bincount(train.labels, minlength=num_classes)
    wanted = np.where(counts >= per_class * VALIDATION_SHARE, per_class, 0)
    if per_class < 1 or not wanted.any():
        raise DataError(
            f"--eval-per-class: expected at least 1 and at most 1/{VALIDATION_SHARE} of the "
            f"largest class of {path} ({counts.max():,} images), got {per_class}"
        )
    chosen = draw_per_class(train.labels, wanted, seed)
    return {"train": train.subset(~chosen), "validation": train.subset(chosen)}
