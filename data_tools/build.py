"""Packs labelled images into WebDataset shards with indices and a manifest.

python -m data_tools.build imagenet22k /path/to/fall11_whole.tar shards/imagenet22k

Archives are read where they lie and never extracted. Every image is decoded once: what is not an
image is left out and listed in DESTINATION/skipped.tsv; repaired.tsv lists what was mended. The
destination appears when it is complete, and not before; the same command continues a build that
was interrupted.

python -m data_tools.build index SOURCE DESTINATION --name NAME   (see data_tools.index)

makes a shard set of shards that somebody else wrote, without rewriting them.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.class_orders import CLASS_ORDERS
from data_tools.staging import check_destination, staged
from pretrain.errors import DataError, run_command

if TYPE_CHECKING:
    from data_tools.pack import Packed
    from data_tools.sources import Source
    from pretrain.data.manifest import Manifest

SKIPPED_FILE = "skipped.tsv"
REPAIRED_FILE = "repaired.tsv"
_LINES_SHOWN = 10


def build(
    source: "Source",
    destination: Path,
    *,
    name: str,
    shard_mib: float,
    seed: int,
    workers: int,
    max_side: int | None = None,
) -> list[str]:
    """Pack a source into a new shard set at ``destination``, which appears only when complete.

    Args:
        source: the images, from `data_tools.sources` or `data_tools.imagenet22k`.
        destination: a directory that does not exist yet, or is empty.
        name: of the edition, and beginning of the shards' names.
        shard_mib: size of a shard aimed at, MiB.
        seed: of the global shuffle.
        workers: processes.
        max_side: larger images are made this large, pixels, and stored as JPEG.

    Returns:
        Lines that say what was packed, what was mended and what was left out.

    Raises:
        DataError: the destination is not free or cannot be written, the name cannot stand in a
            file name, or a class is left without training images.
    """
    # webdataset imports torch: not before it is needed, or --help would wait for it.
    from data_tools.pack import RECORD_SUFFIX, pack
    from data_tools.progress import progress_bar
    from pretrain.data.manifest import write_manifest

    check_options(name, shard_mib, seed, workers, max_side)
    plan: dict[str, object] = {"source": _digest(source), "--name": name, "--seed": seed}
    plan |= {"--shard-mib": shard_mib, "--max-side": max_side}
    with (
        staged(destination, plan=plan, done=f"*{RECORD_SUFFIX}") as stage,
        progress_bar(f"packing {name}", source.listed) as advance,
    ):
        packed = pack(
            source,
            stage,
            name=name,
            shard_bytes=int(shard_mib * 2**20),
            seed=seed,
            workers=workers,
            max_side=max_side,
            on_images=advance,
        )
        try:
            manifest = _manifest(source, destination, name, packed)
        except DataError:
            # The source is at fault: nothing of this is worth continuing.
            for record in stage.glob(f"*{RECORD_SUFFIX}"):
                record.unlink()
            raise
        lines = _reported(source, packed, stage, destination)
        write_manifest(manifest, stage)
    return [_summary(destination, manifest), *lines]


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
    large = kinds.add_parser("imagenet22k", help="fall11 or winter21: archive, tars or folders")
    _add_common(large, "fall11_whole.tar, winter21_whole.tar.gz, or a directory", "imagenet22k")
    _add_class_order(large)
    _add_spool(large)
    for name, about in (
        (
            "imagenet1k",
            "ILSVRC2012: tars with the development kit, Kaggle's layout, the zips of the official "
            "Swin code, the Hugging Face hub's archives, or folders",
        ),
        ("imagenet21kp", "imagenet21k_resized.tar.gz, or imagenet21k_train/ and imagenet21k_val/"),
    ):
        one = kinds.add_parser(name, help=about)
        _add_common(one, about, name, carve=False)
        _add_class_order(one)
        if name == "imagenet21kp":
            _add_spool(one)
    kinds.add_parser("index", help="shards that somebody else wrote, left as they are")
    folder = kinds.add_parser("imagefolder", help="directories of class folders")
    _add_common(folder, "directory that holds train/, or class folders", None)
    folder.add_argument(
        "--class-names", type=Path, metavar="FILE", help="id<TAB>name (default: SOURCE/classes.txt)"
    )
    folder.add_argument(
        "--numbered-by",
        metavar="SHARD_SET",
        help="folders are named by number (ImageNet-V2): the label of a class in this shard set",
    )
    options = parser.parse_args(arguments)
    check_options(options.name, options.shard_mib, options.seed, options.workers, options.max_side)
    check_destination(options.destination)
    check_outside(options.source, options.destination)
    spool = _spool(options)
    lines = build(
        _source(options, spool),
        options.destination,
        name=options.name,
        shard_mib=options.shard_mib,
        seed=options.seed,
        workers=options.workers,
        max_side=options.max_side,
    )
    if "spool" in options:
        from data_tools.spool import remove_spool

        remove_spool(spool)
    print("\n".join(lines))
    return 0


def _add_common(
    parser: argparse.ArgumentParser, source: str, name: str | None, *, carve: bool = True
) -> None:
    parser.add_argument("source", type=Path, help=source)
    parser.add_argument("destination", type=Path, help="directory to make; absent or empty")
    about = "edition, and beginning of file names"
    parser.add_argument(
        "--name",
        default=name,
        required=name is None,
        help=about if name is None else f"{about} (default: {name})",
    )
    parser.add_argument("--shard-mib", type=float, default=440, help="shard size (default: 440)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    if carve:
        parser.add_argument(
            "--eval-per-class", type=int, metavar="N", help="make a validation split of N per class"
        )
    parser.add_argument(
        "--max-side",
        type=int,
        metavar="PIXELS",
        help="make larger images this large, as JPEG (default: every image stays as it is)",
    )
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: all cores)"
    )


def _add_class_order(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--class-order",
        choices=CLASS_ORDERS,
        default="sorted",
        help="which label means which WordNet id (default: sorted)",
    )


def _add_spool(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spool",
        type=Path,
        metavar="DIR",
        help="where the images of a compressed archive wait (default: beside DESTINATION)",
    )


def _spool(options: argparse.Namespace) -> Path:
    destination = options.destination.absolute()
    beside = destination.with_name(f".{destination.name}.spool")
    return beside if getattr(options, "spool", None) is None else options.spool


def _source(options: argparse.Namespace, spool: Path) -> "Source":
    if options.kind == "imagefolder":
        from data_tools.sources import imagefolder
        from pretrain.data.manifest import read_manifest

        numbered_by = options.numbered_by
        return imagefolder(
            options.source,
            class_names_file=options.class_names,
            eval_per_class=options.eval_per_class,
            seed=options.seed,
            numbered_by=None if numbered_by is None else read_manifest(numbered_by),
        )
    if options.kind != "imagenet22k":
        from data_tools.imagenet1k import imagenet1k, imagenet21kp

        if options.kind == "imagenet1k":
            return imagenet1k(options.source, order=options.class_order, workers=options.workers)
        return imagenet21kp(
            options.source, order=options.class_order, spool=spool, workers=options.workers
        )
    from data_tools.imagenet22k import imagenet22k

    return imagenet22k(
        options.source,
        order=options.class_order,
        eval_per_class=options.eval_per_class,
        seed=options.seed,
        spool=spool,
        workers=options.workers,
    )


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def check_outside(source: Path, destination: Path) -> None:
    """Refuse a destination inside the source: `DataError`."""
    if destination.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{destination}: lies inside the source {source}; choose another place")


def check_options(
    name: str, shard_mib: float, seed: int, workers: int, max_side: int | None = None
) -> None:
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
        ("--max-side", 32 if max_side is None else max_side, 32),
    ):
        if not least <= value < 2**31:
            raise DataError(f"{option}: expected at least {least}, got {value:g}")


def _digest(source: "Source") -> str:
    """Digest of what is to be packed: names, labels and sizes, in order, and the classes."""
    digest = hashlib.sha256(json.dumps([source.classes, sorted(source.splits)]).encode())
    for _, images in sorted(source.splits.items()):
        digest.update(repr((images.heads, images.ends)).encode())
        for array in (images.cores, images.labels, images.sizes):
            digest.update(str(array.dtype).encode())
            digest.update(array.data)
    return digest.hexdigest()


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
    empty = [
        item
        for label, item in enumerate(source.classes)
        if label not in trained and item not in source.imageless
    ]
    if empty:
        raise DataError(
            f"{source.root}: {len(empty)} classes without a usable training image, such as "
            f"{empty[0]}{hint}"
        )
    return Manifest(destination.absolute(), name, source.classes, source.class_names, splits)


def _reported(
    source: "Source", packed: "list[Packed]", stage: Path, destination: Path
) -> list[str]:
    """Write the tables of files left out and mended; returns their first lines."""
    skipped = [*source.skipped, *(item for part in packed for item in part.skipped)]
    repaired = [item for part in packed for item in part.repaired]
    shown: list[str] = []
    for what, items, file in (
        ("mended", repaired, REPAIRED_FILE),
        ("left out", skipped, SKIPPED_FILE),
    ):
        if not items:
            continue
        lines = sorted("\t".join(map(_printable, dataclasses.astuple(item))) for item in items)
        (stage / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
        shown.append(f"{what} {len(lines):,} files, all listed in {destination / file}:")
        shown += ["  " + line.replace("\t", ": ") for line in lines[:_LINES_SHOWN]]
    return shown


def _printable(text: str) -> str:
    """Text of one line: names in archives may hold anything."""
    text = text.encode(errors="backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _summary(destination: Path, manifest: "Manifest") -> str:
    splits = (
        f"{split.name} {split.samples:,} images in {len(split.shards)} shards "
        f"({split.bytes / 2**20:,.1f} MiB)"
        for split in manifest.splits.values()
    )
    return f"{destination}: {len(manifest.classes)} classes, {', '.join(splits)}"


if __name__ == "__main__":
    run_command(main)
