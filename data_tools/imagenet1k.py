"""ImageNet-1K and ImageNet-21K-P in the forms they are handed out in.

ImageNet-1K (ILSVRC2012) is one directory with

- ``ILSVRC2012_img_train.tar``, ``ILSVRC2012_img_val.tar`` and the development kit, which alone
  knows the classes of the validation images (by numbers of its own, that its ``meta.mat`` maps);
- or the Kaggle layout: ``ILSVRC/Data/CLS-LOC/{train,val}`` and ``LOC_val_solution.csv``;
- or ``train.zip``, ``val.zip`` and their tables, as the official Swin code takes them;
- or ``train/`` and ``val/`` with a folder for each class.

All give the same source. ImageNet-21K-P is ``imagenet21k_train/`` and ``imagenet21k_val/``, or the
archive they come in.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from data_tools.archives import SYNSET, Collector, Listing, list_folders, list_plain, take_flat
from data_tools.class_orders import class_order, imageless
from data_tools.imagenet22k import assemble, list_archive
from data_tools.mat5 import MAX_BYTES, read_synsets
from data_tools.sources import Images, Skipped, Source
from data_tools.swin_zip import TRAIN_MAP, TRAIN_ZIP, list_swin_zips
from data_tools.tars import FileExtent, StreamExtent, walk
from pretrain.errors import DataError

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
TRAIN_21K, VAL_21K = "imagenet21k_train", "imagenet21k_val"
SMALL_21K = "imagenet21k_small_classes"
KAGGLE_DATA = "ILSVRC/Data/CLS-LOC"
KAGGLE_TRUTH = "LOC_val_solution.csv"
KAGGLE_NAMES = "LOC_synset_mapping.txt"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def imagenet1k(path: Path, *, order: str, workers: int) -> Source:
    """List ImageNet-1K.

    Args:
        path: directory in one of the forms above.
        order: name of the class order, from `data_tools.class_orders`.
        workers: processes.

    Raises:
        DataError: the path is nothing of this kind, incomplete or damaged.
    """
    if (path / TRAIN_TAR).is_file():
        truth, names = _devkit(path)
        train = list_plain([(path / TRAIN_TAR, None)], workers)
        validation = _validation_tar(path / VAL_TAR, truth)
        return _source(path, order, names, (train, path), (validation, path), flat=False)
    if (path / KAGGLE_DATA / "train").is_dir():
        data = path / KAGGLE_DATA
        train = _class_folders(data / "train", workers)
        validation = _validation_folder(data / "val", _kaggle_truth(path / KAGGLE_TRUTH))
        names = _kaggle_names(path / KAGGLE_NAMES)
        splits = (train, data / "train"), (validation, data / "val")
        return _source(path, order, names, *splits, flat=True)
    if (path / TRAIN_ZIP).is_file():
        train, validation = list_swin_zips(path)
        return _source(path, order, {}, (train, path), (validation, path), flat=False)
    val = "val" if (path / "val").is_dir() else "validation"
    if (path / "train").is_dir() and (path / val).is_dir():
        return _folders(path, "train", val, order, workers)
    raise DataError(
        f"{path}: no form of ImageNet-1K; expected a directory with {TRAIN_TAR}, {VAL_TAR} and "
        f"{DEVKIT}.tar.gz, or {KAGGLE_DATA} and {KAGGLE_TRUTH}, or {TRAIN_ZIP} and {TRAIN_MAP}, "
        "or train/ and val/"
    )


def imagenet21kp(path: Path, *, order: str, spool: Path, workers: int) -> Source:
    """List ImageNet-21K-P.

    Of the archive only the two folders are read: its ``imagenet21k_small_classes`` had no part in
    the published training.

    Args:
        path: the archive, compressed or not, or a directory with the two folders.
        order: name of the class order, from `data_tools.class_orders`.
        spool: directory for the images of a compressed archive.
        workers: processes.

    Raises:
        DataError: the path is nothing of this kind, or damaged.
    """
    splits = (TRAIN_21K, VAL_21K)
    if path.is_file():
        listing = list_archive(path, spool=spool, workers=workers, splits=splits)
        train, val = (
            Listing([part for part in listing.images if part.above == split], skipped)
            for split, skipped in zip(splits, (listing.skipped, []), strict=True)
        )
        listing.images.clear()
        return _source(
            path, order, {}, (train, path / TRAIN_21K), (val, path / VAL_21K), flat=False
        )
    if not all((path / split).is_dir() for split in splits):
        raise DataError(
            f"{path}: expected imagenet21k_resized.tar.gz, or a directory with {TRAIN_21K}/ and "
            f"{VAL_21K}/"
        )
    return _folders(path, TRAIN_21K, VAL_21K, order, workers)


def _folders(path: Path, train: str, val: str, order: str, workers: int) -> Source:
    listings = [(_class_folders(path / name, workers), path / name) for name in (train, val)]
    return _source(path, order, {}, listings[0], listings[1], flat=False)


def _source(
    path: Path,
    order: str,
    names: Mapping[str, str],
    train: tuple[Listing, Path],
    validation: tuple[Listing, Path],
    *,
    flat: bool,
) -> Source:
    """Put two listings, each with the folder its names start from, into one source."""
    for listing, folder in (train, validation):
        if not listing.images:
            raise DataError(f"{path}: no image in {folder}")
    classes = class_order(order, (part.wnid for part in train[0].images))
    unknown = sorted({part.wnid for part in validation[0].images} - set(classes))
    if unknown:
        raise DataError(
            f"{path}: {len(unknown)} classes of the validation images have no training images, "
            f"such as {unknown[0]}"
        )
    skipped: list[Skipped] = []
    splits: dict[str, Images] = {}
    for split, (listing, folder) in (("train", train), ("validation", validation)):
        on_one_level = flat and split == "validation"
        images, repeated = assemble(listing, classes, folder, flat=on_one_level)
        splits[split] = images
        skipped += [*listing.skipped, *repeated]
    readable = tuple(names.get(wnid, wnid) for wnid in classes)
    return Source(path, classes, readable, splits, tuple(skipped), imageless(order))


def _class_folders(folder: Path, workers: int) -> Listing:
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from None
    return list_folders(folder, [e.name for e in entries if SYNSET.fullmatch(e.name)], workers)


def _validation_tar(path: Path, truth: Mapping[str, str]) -> Listing:
    collector, seen = Collector(), set[str]()
    try:
        with path.open("rb") as file:
            extent = FileExtent(file.fileno(), 0, path.stat().st_size)
            for member in walk(extent, str(path)):
                at = path, member.offset
                seen |= take_flat(collector, truth, member.name, member.bytes, *at)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    _check_complete(path, seen, truth)
    return collector.flush()


def _validation_folder(folder: Path, truth: Mapping[str, str]) -> Listing:
    collector, seen = Collector(), set[str]()
    try:
        for entry in folder.iterdir():
            if entry.is_file():
                size = entry.stat().st_size
                seen |= take_flat(collector, truth, entry.name, size, folder, 0)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from None
    _check_complete(folder, seen, truth)
    return collector.flush()


def _check_complete(where: Path, seen: set[str], truth: Mapping[str, str]) -> None:
    missing = sorted(set(truth) - seen)
    if missing:
        raise DataError(
            f"{where}: {len(missing):,} of {len(truth):,} validation images are missing, such as "
            f"{missing[0]}.JPEG; fetch the rest"
        )


def _devkit(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Image name → WordNet id, and WordNet id → readable name."""
    archive, folder = path / f"{DEVKIT}.tar.gz", path / DEVKIT
    if archive.is_file():
        files, where = _devkit_files(archive), str(archive)
    elif (folder / "data").is_dir():
        files = {f.name: f.read_bytes() for f in (folder / "data").iterdir() if f.is_file()}
        where = str(folder)
    else:
        raise DataError(
            f"{path}: no {DEVKIT}.tar.gz; it alone tells the classes of the images in {VAL_TAR}, "
            "fetch it from where the others came"
        )
    for name in ("meta.mat", _TRUTH):
        if name not in files:
            raise DataError(f"{where}: no {name} in it; fetch the development kit again")
    synsets = {row.ilsvrc_id: row for row in read_synsets(files["meta.mat"], where)}
    truth: dict[str, str] = {}
    for number, line in enumerate(files[_TRUTH].split(), start=1):
        row = synsets.get(int(line)) if line.isdigit() else None
        if row is None:
            raise DataError(f"{where}: {_TRUTH}:{number}: no class {line[:20]!r} in meta.mat")
        truth[f"ILSVRC2012_val_{number:08d}"] = row.wnid
    return truth, {row.wnid: row.words for row in synsets.values() if row.words}


def _devkit_files(archive: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with gzip.open(archive) as plain:
            extent = StreamExtent(plain)
            for member in walk(extent, str(archive)):
                name = member.name.rpartition("/")[2]
                if name in ("meta.mat", _TRUTH) and member.bytes <= MAX_BYTES:
                    found[name] = extent.read(member.bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{archive}: damaged or cut short: {error}; fetch it again") from None
    except OSError as error:
        raise DataError(f"{archive}: cannot be read: {error.strerror}") from None
    return found


def _kaggle_truth(file: Path) -> dict[str, str]:
    truth: dict[str, str] = {}
    for number, row in enumerate(csv.reader(_lines(file)), start=1):
        if number == 1 and row[:1] == ["ImageId"]:
            continue
        wnid = row[1].split(" ")[0] if len(row) == 2 else ""
        if SYNSET.fullmatch(wnid) is None:
            raise DataError(
                f"{file}:{number}: expected ImageId,PredictionString that begins with a WordNet "
                f"id, got {','.join(row)[:80]!r}"
            )
        truth[row[0]] = wnid
    return truth


def _kaggle_names(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    found = (re.fullmatch(r"(n\d{8}) (.+)", line) for line in _lines(file))
    return {match[1]: match[2] for match in found if match is not None}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
