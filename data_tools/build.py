"""Packs labelled images into WebDataset shards with indices and a manifest.

python -m data_tools.build imagefolder SOURCE DESTINATION --name imagenet22k

SOURCE holds train/ and val/ (or validation/, test/) with one folder per class, or the class
folders themselves. Every file is decoded once: what is not an image is left out and listed in
DESTINATION/skipped.tsv. The destination appears when it is complete, and not before.

python -m data_tools.build index SOURCE DESTINATION --name NAME   (see data_tools.index)

makes a shard set of shards that somebody else wrote, without rewriting them.
"""

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.staging import check_destination, staged
from pretrain.errors import DataError, run_command

if TYPE_CHECKING:
    from data_tools.pack import Packed
    from data_tools.sources import Source
    from pretrain.data.manifest import Manifest

SKIPPED_FILE = "skipped.tsv"
_SKIPPED_SHOWN = 10


def build(
    source: "Source", destination: Path, *, name: str, shard_mib: float, seed: int, workers: int
) -> list[str]:
    """Pack a source into a new shard set at ``destination``, which appears only when complete.

    Args:
        source: the images, from `data_tools.sources`.
        destination: a directory that does not exist yet, or is empty.
        name: of the edition, and beginning of the shards' names.
        shard_mib: size of a shard aimed at, MiB.
        seed: of the global shuffle.
        workers: processes.

    Returns:
        Lines that say what was packed and what was left out.

    Raises:
        DataError: the destination is not free or cannot be written, the name cannot stand in a
            file name, or a class is left without training images.
    """
    # webdataset imports torch: not before it is needed, or --help would wait for it.
    from data_tools.pack import pack
    from data_tools.progress import progress_bar
    from pretrain.data.manifest import write_manifest

    check_options(name, shard_mib, seed, workers)
    total = sum(len(images.paths) for images in source.splits.values())
    with staged(destination) as stage, progress_bar(f"packing {name}", total) as advance:
        packed = pack(
            source,
            stage,
            name=name,
            shard_bytes=int(shard_mib * 2**20),
            seed=seed,
            workers=workers,
            on_images=advance,
        )
        manifest = _manifest(source, destination, name, packed)
        skipped = [f"{item.path}\t{item.reason}" for part in packed for item in part.skipped]
        if skipped:
            (stage / SKIPPED_FILE).write_text("\n".join(skipped) + "\n", encoding="utf-8")
        write_manifest(manifest, stage)
    return _summary(destination, manifest, skipped)


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    if arguments[:1] == ["index"]:
        from data_tools.index import main as index_main

        return index_main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="SOURCE_KIND")
    folder = kinds.add_parser("imagefolder", help="directories of class folders")
    folder.add_argument("source", type=Path, help="directory that holds train/, or class folders")
    folder.add_argument("destination", type=Path, help="directory to make; absent or empty")
    folder.add_argument("--name", required=True, help="edition, and beginning of file names")
    folder.add_argument("--shard-mib", type=float, default=440, help="shard size (default: 440)")
    folder.add_argument("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    folder.add_argument(
        "--eval-per-class", type=int, metavar="N", help="make a validation split of N per class"
    )
    folder.add_argument(
        "--class-names", type=Path, metavar="FILE", help="id<TAB>name (default: SOURCE/classes.txt)"
    )
    folder.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: all cores)"
    )
    options = parser.parse_args(arguments)
    from data_tools.sources import imagefolder

    check_options(options.name, options.shard_mib, options.seed, options.workers)
    check_destination(options.destination)
    if options.destination.resolve().is_relative_to(options.source.resolve()):
        raise DataError(
            f"{options.destination}: lies inside the source {options.source}; choose another place"
        )
    source = imagefolder(
        options.source,
        class_names_file=options.class_names,
        eval_per_class=options.eval_per_class,
        seed=options.seed,
    )
    lines = build(
        source,
        options.destination,
        name=options.name,
        shard_mib=options.shard_mib,
        seed=options.seed,
        workers=options.workers,
    )
    print("\n".join(lines))
    return 0


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def check_options(name: str, shard_mib: float, seed: int, workers: int) -> None:
    """Refuse values that cannot be meant: `DataError`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}", name):
        raise DataError(
            f"--name: expected up to 61 letters, digits, - and _, as it begins file names; "
            f"got {name!r}"
        )
    for option, value, least in (
        ("--shard-mib", shard_mib, 0.01),
        ("--seed", seed, 0),
        ("--workers", workers, 1),
    ):
        if not least <= value < 2**31:
            raise DataError(f"{option}: expected at least {least}, got {value:g}")


def _manifest(source: "Source", destination: Path, name: str, packed: "list[Packed]") -> "Manifest":
    from pretrain.data.manifest import Manifest, Split

    skipped = [item for part in packed for item in part.skipped]
    hint = f"; the first file left out: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
    splits: dict[str, Split] = {}
    for split in source.splits:
        shards = tuple(p.shard for p in packed if p.split == split and p.shard is not None)
        if not shards:
            raise DataError(f"{source.root}: no usable image for split {split!r}{hint}")
        splits[split] = Split(split, shards)
    trained = {label for p in packed if p.split == "train" for label in p.labels}
    empty = [item for label, item in enumerate(source.classes) if label not in trained]
    if empty:
        raise DataError(
            f"{source.root}: {len(empty)} classes without a usable training image, such as "
            f"{empty[0]}{hint}"
        )
    return Manifest(destination.absolute(), name, source.classes, source.class_names, splits)


def _summary(destination: Path, manifest: "Manifest", skipped: list[str]) -> list[str]:
    splits = (
        f"{split.name} {split.samples:,} images in {len(split.shards)} shards "
        f"({split.bytes / 2**20:,.1f} MiB)"
        for split in manifest.splits.values()
    )
    lines = [f"{destination}: {len(manifest.classes)} classes, {', '.join(splits)}"]
    if skipped:
        lines.append(f"left out {len(skipped)} files, all listed in {destination / SKIPPED_FILE}:")
        lines += ["  " + line.replace("\t", ": ") for line in skipped[:_SKIPPED_SHOWN]]
    return lines


if __name__ == "__main__":
    run_command(main)
