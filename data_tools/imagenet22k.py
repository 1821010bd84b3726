"""ImageNet-22K as it is handed out: one archive of 21,841 (19,167) synsets, or what came out of it.

All these give the same source: ``fall11_whole.tar`` (a tar of tars), ``winter21_whole.tar.gz`` (a
compressed tar of tars, or of folders), a directory of ``nXXXXXXXX.tar``, a directory of folders
``nXXXXXXXX``.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

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
from data_tools.sources import Images, Places, Skipped, Source, draw_per_class
from data_tools.spool import list_gzip
from pretrain.errors import DataError

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
        try:
            packed = is_gzip(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        return list_gzip(path, spool) if packed else list_plain([(path, None)], workers)
    root, folders, tars = _synsets_in(path)
    if folders and tars:
        raise DataError(
            f"{root}: holds folders ({folders[0]}, …) and tars ({tars[0]}, …) of synsets; "
            "expected one of the two"
        )
    if folders:
        return list_folders(root, folders, workers)
    return list_plain([(root / name, name.removesuffix(".tar")) for name in tars], workers)


def assemble(
    listing: Listing, classes: tuple[str, ...], folder: Path, *, flat: bool = False
) -> tuple[Images, list[Skipped]]:
    """Bring listed images into their one order: by label, then by name.

    Args:
        listing: the images.
        classes: ids in the order of their labels.
        folder: directory the names start from, for images that are files.
        flat: whether they lie in it without folders of their classes.

    Returns:
        The images, and those left out because another of the same name comes later.
    """
    by_class: dict[str, list[Listed]] = defaultdict(list)
    for part in listing.images:
        by_class[part.wnid].append(part)
    in_archives = all(part.file.is_file() for part in {p.file: p for p in listing.images}.values())
    files = sorted({part.file for part in listing.images})
    number = {file: i for i, file in enumerate(files)}
    names, labels, sizes, offsets, numbers, deflated = [], [], [], [], [], []
    repeated: list[Skipped] = []
    for label, wnid in enumerate(classes):
        parts = by_class.get(wnid, [])
        if not parts:
            continue
        name = np.concatenate([np.char.add(f"{wnid}/".encode(), part.names) for part in parts])
        by_name = np.argsort(name, kind="stable")
        again = np.append(name[by_name][:-1] == name[by_name][1:], False)
        reason = "another of its name comes later in the archive"
        repeated += [Skipped(item.decode(), reason) for item in name[by_name][again].tolist()]
        kept = by_name[~again]
        names.append(name[kept])
        labels.append(np.full(len(kept), label, dtype=np.int32))
        sizes.append(np.concatenate([part.sizes for part in parts])[kept])
        offsets.append(np.concatenate([part.offsets for part in parts])[kept])
        of = [np.full(len(part.names), number[part.file], dtype=np.int32) for part in parts]
        numbers.append(np.concatenate(of)[kept])
        packed = [np.zeros_like(p.sizes) if p.deflated is None else p.deflated for p in parts]
        deflated.append(np.concatenate(packed)[kept])
    places = None
    if in_archives:
        inside = (np.concatenate(part) for part in (numbers, offsets, deflated))
        places = Places(tuple(files), *inside)
    images = Images(
        folder, np.concatenate(names), np.concatenate(labels), np.concatenate(sizes), places, flat
    )
    return images, repeated


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
