"""Makes a shard set of shards that somebody else wrote, without rewriting them.

python -m data_tools.index SOURCE DESTINATION --name imagenet22k

SOURCE holds WebDataset tars whose names end in a number (timm's imagenet-22k-wds:
imagenet22k-train-0000.tar, …) with members KEY.jpg, KEY.cls (the label) and perhaps KEY.json.
DESTINATION gets an index of each, the manifest, and links to the tars, which must stay where they
are. Every header and image is read once; anything wrong is listed, and then nothing is written.
The class ids come from --classes FILE (one WordNet id a line, in the order of the labels, perhaps
with a name behind it), or from the samples themselves: from keys that begin with the id, such as
n01440764_10026, or "wnid" in the json. Where both say something they must agree.
"""

import argparse
import hashlib
import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from data_tools.build import available_cores, check_options, check_outside
from data_tools.index_shard import Indexed, index_shard
from data_tools.progress import progress_bar
from data_tools.sources import read_lines
from data_tools.staging import check_destination, staged
from pretrain.data.manifest import (
    MANIFEST_FILE,
    TIMM_INFO_FILE,
    Manifest,
    Shard,
    Split,
    write_manifest,
)
from pretrain.data.shards import INDEX_DTYPE
from pretrain.errors import DataError, run_command
from pretrain.files import read_json

_SHOWN = 20
_NUMBERED = re.compile(r"(.*?)(\d+)\.tar")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def index(
    source: Path, destination: Path, *, name: str, classes_file: Path | None, workers: int
) -> list[str]:
    """Make the shard set; the destination appears only when it is complete.

    Args:
        source: directory of tars, also in folders below it.
        destination: a directory that does not exist yet, or is empty.
        name: of the edition.
        classes_file: ordered class ids, or None to take them from the keys.
        workers: processes.

    Returns:
        Lines that say what there is.

    Raises:
        DataError: the shards are not whole, numbered without gap and rightly labelled.
    """
    check_destination(destination)
    listed = None if classes_file is None else _read_classes(classes_file)
    splits = _find(source)
    paths = [path for found in splits.values() for path in found]
    indexed = _walk_all(paths, workers)
    _refuse([f"{path}: {what}" for path in paths for what in indexed[path].problems])
    _refuse(_info_problems(source, indexed))
    classes, names = listed or _classes_of_keys(source, indexed)
    _refuse(_label_problems(source, indexed, classes))
    with staged(destination) as stage:
        made: dict[str, Split] = {}
        for split, found in splits.items():
            made[split] = Split(split, tuple(_write(stage, p, indexed[p]) for p in found))
        manifest = Manifest(destination.absolute(), name, classes, names, made)
        write_manifest(manifest, stage)
    counts = (f"{s.name} {s.samples:,} images in {len(s.shards)} shards" for s in made.values())
    return [f"{destination}: {len(classes)} classes, {', '.join(counts)}"]


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="directory of tars")
    parser.add_argument("destination", type=Path, help="directory to make; absent or empty")
    parser.add_argument("--name", required=True, help="edition")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class ids by label: id[<TAB>name]"
    )
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: all cores)"
    )
    options = parser.parse_args(arguments)
    check_options(options.name, 1, 0, options.workers)
    check_outside(options.source, options.destination)
    lines = index(
        options.source,
        options.destination,
        name=options.name,
        classes_file=options.classes,
        workers=options.workers,
    )
    print("\n".join(lines))
    return 0


def _refuse(problems: list[str]) -> None:
    if problems:
        more = len(problems) - _SHOWN
        raise DataError(
            "\n".join(problems[:_SHOWN] + ([f"… and {more} more problems"] if more > 0 else []))
        )


def _find(source: Path) -> dict[str, list[Path]]:
    """Split → its shards in order of their numbers."""
    if not source.is_dir():
        raise DataError(f"{source}: expected a directory of .tar files")
    for found in source.rglob(MANIFEST_FILE):
        raise DataError(
            f"{found.parent}: is a shard set already, with a class list of its own: train on it "
            f"with data.path={found.parent}; to index its tars anew, remove {found} first"
        )
    series: dict[str, dict[int, Path]] = {}
    for path in _tars(source):
        numbered = _NUMBERED.fullmatch(path.name)
        if numbered is None:
            raise DataError(f"{path}: expected a name that ends in a number, as train-0000.tar")
        series.setdefault(numbered[1], {})[int(numbered[2])] = path
    sets = {_without_split(prefix): prefix for prefix in sorted(series)}
    if len(sets) > 1:
        one, other, *_ = sets.values()
        raise DataError(
            f"{source}: {one}*.tar and {other}*.tar are named like two data sets, whose labels may "
            "mean different classes; index each from a directory of its own, or rename one"
        )
    splits: dict[str, list[Path]] = {}
    for prefix, numbers in series.items():
        _check_numbers(source, prefix, numbers)
        split = _split_of(prefix, len(series))
        if split is None or split in splits:
            raise DataError(
                f"{source}: cannot tell which split {prefix}*.tar are among "
                f"{', '.join(sorted(series))}; expected train, val, validation or test, once each"
            )
        splits[split] = [numbers[number] for number in sorted(numbers)]
    return splits


def _tars(source: Path) -> Iterator[Path]:
    by_name: dict[str, Path] = {}
    for path in sorted(source.rglob("*.tar")):
        if path.name in by_name:
            raise DataError(
                f"{path}: has the same name as {by_name[path.name]}; a shard set is one directory: "
                "rename one of them"
            )
        if not path.is_file():
            state = "expected a file, it is none" if path.exists() else "a link that leads nowhere"
            raise DataError(f"{path}: {state}; fetch it again or remove it")
        by_name[path.name] = path
    if not by_name:
        packed = next(source.rglob("*.tar.gz"), next(source.rglob("*.tgz"), None))
        hint = "" if packed is None else f" but {packed.name}: unpack with gunzip first"
        raise DataError(f"{source}: expected .tar files in it, found none{hint}")
    yield from by_name.values()


def _check_numbers(source: Path, prefix: str, numbers: dict[int, Path]) -> None:
    first, last = min(numbers), max(numbers)
    # Some count from one; whoever begins later has lost shards.
    missing = [n for n in range(min(first, 1), last) if n not in numbers]
    missing = [n for n in missing if n > 0 or first == 0]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise DataError(
            f"{source}: gap in the numbers of {prefix}*.tar: {len(missing)} of {last + 1} missing "
            f"({shown}); fetch those shards again"
        )


def _without_split(prefix: str) -> tuple[str, ...]:
    """The words that name the data set, in the name of its shards."""
    return tuple(w for w in re.findall(r"[a-z]+|\d+", prefix.lower()) if w not in _SPLITS)


def _split_of(prefix: str, series: int) -> str | None:
    words = [_SPLITS[word] for word in re.split(r"[^a-z]+", prefix.lower()) if word in _SPLITS]
    return words[-1] if words else ("train" if series == 1 else None)


def _walk_all(paths: list[Path], workers: int) -> dict[Path, Indexed]:
    context = multiprocessing.get_context("fork")
    indexed: dict[Path, Indexed] = {}
    with (
        progress_bar("indexing", len(paths)) as advance,
        ProcessPoolExecutor(min(workers, len(paths)), mp_context=context) as pool,
    ):
        futures = {pool.submit(index_shard, path): path for path in paths}
        for future in as_completed(futures):
            indexed[futures[future]] = future.result()
            advance(1)
    return indexed


def _read_classes(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    # Ids may hold blanks where they are no WordNet ids; names begin behind a tab then.
    pairs = [
        re.match(r"\s*(n\d{8}(?=\s)|[^\t]+)\s*(.*)", line)
        for line in read_lines(path)
        if line.strip()
    ]
    ids = tuple(pair[1].strip() for pair in pairs if pair is not None)
    if not ids or len(set(ids)) != len(ids):
        raise DataError(f"{path}: expected one class id a line, each once, in order of the labels")
    return ids, tuple(pair[2].strip() or pair[1].strip() for pair in pairs if pair is not None)


def _classes_of_keys(
    source: Path, indexed: dict[Path, Indexed]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    by_label: dict[int, dict[str, str]] = {}
    for shard in indexed.values():
        for label, found in shard.wordnet_ids.items():
            by_label[label] = {**found, **by_label.get(label, {})}
    labels = {record[2] for shard in indexed.values() for record in shard.records}
    unknown = sorted(set(range(max(labels) + 1)) - set(by_label)) + sorted(labels - set(by_label))
    if unknown:
        raise DataError(
            f"{source}: nothing says which class label {unknown[0]} is ({len(set(unknown))} such "
            "labels); give the ordered class ids with --classes FILE"
        )
    for label, found in sorted(by_label.items()):
        if len(found) > 1:
            told = ", ".join(f"{key} has {wnid}" for wnid, key in list(found.items())[:2])
            raise DataError(f"{source}: label {label} disagrees with the WordNet ids: {told}")
    ids = tuple(next(iter(by_label[label])) for label in range(len(by_label)))
    for label, wnid in enumerate(ids):
        if ids.index(wnid) != label:
            raise DataError(f"{source}: {wnid} has two labels: {ids.index(wnid)} and {label}")
    return ids, ids


def _label_problems(
    source: Path, indexed: dict[Path, Indexed], classes: tuple[str, ...]
) -> list[str]:
    """What the class list and the shards do not agree on; a wrong list is one problem."""
    outside = [
        (path, record[2])
        for path, shard in indexed.items()
        for record in shard.records
        if record[2] >= len(classes)
    ]
    if outside:
        path, label = outside[0]
        return [
            f"{path}: label {label}, expected 0 to {len(classes) - 1}; {len(outside):,} samples in "
            f"{len({path for path, _ in outside}):,} shards have labels outside the class list: "
            "give the list they were made with"
        ]
    named = [
        (path, key, wnid, label)
        for path, shard in indexed.items()
        for label, found in shard.wordnet_ids.items()
        for wnid, key in found.items()
    ]
    problems = [
        f"{path}: {key}: it says {wnid}, its label {label} is {classes[label]} in the class list"
        for path, key, wnid, label in named
        if classes[label] != wnid
    ]
    if len(problems) > max(3, len(named) // 10):
        return [
            f"{source}: the class list is not in the order of these labels: {len(problems):,} of "
            f"{len(named):,} classes looked at disagree, such as {problems[0]}; give the list the "
            "labels were made with"
        ]
    return [f"{problem}; the sample is mislabelled: mend or leave out" for problem in problems]


def _info_problems(source: Path, indexed: dict[Path, Indexed]) -> list[str]:
    """What disagrees with timm's ``_info.json`` where there is one: it alone tells of lost ends."""
    samples = {path.name: len(shard.records) for path, shard in indexed.items()}
    problems: list[str] = []
    try:
        splits = list((read_json(source / TIMM_INFO_FILE) or {"splits": {}})["splits"].values())
        lists = [list(zip(s["filenames"], s["shard_lengths"], strict=True)) for s in splits]
    except (AttributeError, KeyError, TypeError, ValueError, OSError):
        return [f"{source / TIMM_INFO_FILE}: not as timm writes it; mend or remove it"]
    for promised in lists:
        for file, length in promised:
            found = samples.get(Path(str(file)).name)
            if found is None:
                problems.append(f"{source}: {file} is missing, {TIMM_INFO_FILE} lists it")
            elif found != length:
                problems.append(
                    f"{source}: {file} has {found} samples, {TIMM_INFO_FILE} says {length}; fetch "
                    "it again"
                )
    return problems


def _write(stage: Path, path: Path, found: Indexed) -> Shard:
    records = np.array(found.records, dtype=INDEX_DTYPE).tobytes()
    try:
        (stage / path.name).symlink_to(path.resolve())
        with (stage / path.name).with_suffix(".idx").open("wb") as file:
            file.write(records)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{stage}: cannot be written: {error.strerror}") from None
    digest = hashlib.sha256(records).hexdigest()
    return Shard(path.name, len(found.records), found.bytes, found.sha256, digest)


if __name__ == "__main__":
    run_command(main)
