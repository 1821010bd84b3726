"""Makes a small labelled set of painted pictures, to try everything with on any machine.

python -m data_tools.synthetic DESTINATION
python -m data_tools.synthetic DESTINATION --raw

DESTINATION/images/{22k,1k}/{train,validation}/nXXXXXXXX/*.JPEG are the pictures; DESTINATION/22k
and DESTINATION/1k the shard sets packed from them. As with the real ones, the classes of 1k are
some of 22k's and its pictures are others. What is already there, whole, is used again.

With --raw, DESTINATION/imagenet22k, imagenet21kp and imagenet1k hold miniatures of the forms that
ImageNet is handed out in, with their true structure and faults, to try `data_tools.build` on.
"""

import argparse
import io
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from data_tools.build import available_cores, build
from data_tools.painting import KINDS, paint
from data_tools.progress import progress_bar
from data_tools.sources import CLASS_NAMES_FILE, imagefolder
from data_tools.staging import staged
from pretrain.data.manifest import Manifest, check_shards, read_manifest
from pretrain.errors import DataError, run_command

Content = TypeVar("Content")

PAINT_VERSION = 1
"""Rises whenever the same seed gives other pictures."""
MARK_FILE = "synthetic.json"
_FINE_TUNING_CLASSES = (1, 3, 5, 6, 8, 11)
_EDITIONS = ("22k", "1k")
_RAW_IMAGES_PER_CLASS = 12


@dataclass(frozen=True)
class Counts:
    """Images per class."""

    train_22k: int = 200
    validation_22k: int = 25
    train_1k: int = 100
    validation_1k: int = 30


@dataclass(frozen=True)
class _Folder:
    """The pictures of one class in one split."""

    path: Path
    kind: int
    count: int
    seeds: tuple[int, ...]


def make(destination: Path, *, seed: int, workers: int, counts: Counts | None = None) -> list[str]:
    """Paint and pack the set, or find it there already.

    Args:
        destination: directory to make; absent, empty, or made by an earlier call.
        seed: fixes every picture.
        workers: processes.
        counts: images per class.

    Returns:
        Lines that say what there is.

    Raises:
        DataError: the destination holds something else, or a damaged set, or cannot be written.
    """
    counts = Counts() if counts is None else counts
    mark = {"paint_version": PAINT_VERSION, "seed": seed, "counts": asdict(counts)}
    if destination.is_dir() and (destination / MARK_FILE).exists():
        _check_whole(destination, mark)
        return [f"{destination}: already there"]
    started = time.monotonic()
    with staged(destination) as stage:
        _paint_all(stage / "images", counts, seed, workers)
        for edition in _EDITIONS:
            source = imagefolder(
                stage / "images" / edition, class_names_file=None, eval_per_class=None, seed=seed
            )
            build(
                source,
                stage / edition,
                name=f"synthetic{edition}",
                shard_mib=2,
                seed=seed,
                workers=workers,
            )
        (stage / MARK_FILE).write_text(json.dumps(mark) + "\n", encoding="utf-8")
    seconds = time.monotonic() - started
    return [f"{destination}: made in {seconds:.0f} s", *map(_describe, _editions(destination))]


def make_raw(destination: Path, *, seed: int) -> list[str]:
    """Write a miniature of every form that ImageNet is handed out in.

    Args:
        destination: directory to make; absent or empty.
        seed: fixes every picture.

    Returns:
        The paths written.

    Raises:
        DataError: the destination holds something, or cannot be written.
    """
    from data_tools.raw_forms import FORMS_22K, synsets
    from data_tools.raw_forms_1k import FORMS_1K, ilsvrc
    from data_tools.raw_forms_21kp import FORMS_21KP, resized

    count = _RAW_IMAGES_PER_CLASS
    large, middle = synsets(count, seed, len(KINDS)), resized(count, seed, len(KINDS))
    small = ilsvrc(count, seed, len(_FINE_TUNING_CLASSES))
    with staged(destination) as stage:
        written = [
            *_write_forms(stage / "imagenet22k", FORMS_22K, large),
            *_write_forms(stage / "imagenet21kp", FORMS_21KP, middle),
            *_write_forms(stage / "imagenet1k", FORMS_1K, small),
        ]
    return [str(destination / path.relative_to(stage)) for path in written]


def _write_forms(
    edition: Path, forms: Mapping[str, Callable[[Path, Content], None]], content: Content
) -> list[Path]:
    edition.mkdir()
    for form, write in forms.items():
        write(edition / form, content)
    return [edition / form for form in forms]


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.synthetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("destination", type=Path, help="directory to make; absent or empty")
    parser.add_argument("--seed", type=int, default=0, help="fixes every picture (default: 0)")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: all cores)"
    )
    parser.add_argument(
        "--raw", action="store_true", help="write the forms ImageNet is handed out in instead"
    )
    options = parser.parse_args(arguments)
    for name, value, least in (("--seed", options.seed, 0), ("--workers", options.workers, 1)):
        if not least <= value < 2**31:
            raise DataError(f"{name}: expected at least {least}, got {value}")
    if options.raw:
        print("\n".join(make_raw(options.destination, seed=options.seed)))
        return 0
    print("\n".join(make(options.destination, seed=options.seed, workers=options.workers)))
    return 0


def _check_whole(destination: Path, mark: dict[str, object]) -> None:
    remedy = "remove the directory, or choose another"
    try:
        found = json.loads((destination / MARK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{destination / MARK_FILE}: unreadable ({error}); {remedy}") from None
    if found != mark:
        raise DataError(f"{destination}: made with {found}, asked for {mark}; {remedy}")
    for manifest in _editions(destination):
        for split in manifest.splits:
            check_shards(manifest, split)


def _editions(destination: Path) -> list[Manifest]:
    return [read_manifest(destination / edition) for edition in _EDITIONS]


def _describe(manifest: Manifest) -> str:
    splits = (f"{split.name} {split.samples:,} images" for split in manifest.splits.values())
    return f"{manifest.root}: {len(manifest.classes)} classes, {', '.join(splits)}"


def _paint_all(images: Path, counts: Counts, seed: int, workers: int) -> None:
    folders: list[_Folder] = []
    everything, some = tuple(range(len(KINDS))), _FINE_TUNING_CLASSES
    for stream, (edition, split, kinds, count) in enumerate(
        (
            ("22k", "train", everything, counts.train_22k),
            ("22k", "validation", everything, counts.validation_22k),
            ("1k", "train", some, counts.train_1k),
            ("1k", "validation", some, counts.validation_1k),
        )
    ):
        for kind in kinds:
            path = images / edition / split / KINDS[kind].wnid
            folders.append(_Folder(path, kind, count, (seed, stream, kind)))
    for edition in _EDITIONS:
        (images / edition).mkdir(parents=True)
        names = "".join(f"{kind.wnid}\t{kind.name}\n" for kind in KINDS)
        (images / edition / CLASS_NAMES_FILE).write_text(names, encoding="utf-8")
    total = sum(folder.count for folder in folders)
    context = multiprocessing.get_context("fork")
    # Ctrl-C reaches the whole terminal group; this process alone answers it and ends the others,
    # which inherit the blocked signal from their first instant.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pool = context.Pool(workers)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    with pool, progress_bar("painting", total) as advance:
        for painted in pool.imap_unordered(_paint_folder, folders):
            advance(painted)


def _paint_folder(folder: _Folder) -> int:
    folder.path.mkdir(parents=True)
    kind = KINDS[folder.kind]
    for i in range(folder.count):
        random = np.random.default_rng([*folder.seeds, i])
        data = _encode(paint(kind, random), i, random)
        (folder.path / f"{kind.wnid}_{i}.JPEG").write_bytes(data)
    return folder.count


def _encode(pixels: np.ndarray, number: int, random: np.random.Generator) -> bytes:
    """An image file; a few are not what their name says, as in ImageNet."""
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    if number % 97 == 13:
        image.save(file, "PNG")
        return file.getvalue()
    if random.random() < 0.04:
        image = image.convert("L")
    elif number % 151 == 20:
        image = image.convert("CMYK")
    image.save(file, "JPEG", quality=int(random.integers(55, 96)))
    return file.getvalue()


if __name__ == "__main__":
    run_command(main)
