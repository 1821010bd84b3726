"""Makes a shard set of shards that somebody else wrote, without rewriting them.

python -m data_tools.index SOURCE DESTINATION --name imagenet22k

SOURCE holds WebDataset tars whose names end in a number (timm's imagenet-22k-wds:
imagenet22k-train-0000.tar, …) with members KEY.jpg, KEY.cls (the label) and perhaps KEY.json.
DESTINATION gets an index of each, the manifest, and links to the tars, which must stay where they
are. Every header and image is read once; anything wrong is listed, and then nothing is written.
The class ids come from --classes FILE (one WordNet id a line, in the order of the labels, perhaps
with <TAB>name), or from the keys where those begin with the id, such as n01440764_10026.
"""

import argparse
import hashlib
import multiprocessing
import os
import re
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.build import available_cores, check_options
from data_tools.progress import progress_bar
from data_tools.staging import check_destination, staged
from data_tools.tar_headers import Member, TarError
from data_tools.tar_walk import walk
from data_tools.verify import is_image, split_name
from pretrain.data.manifest import TIMM_INFO_FILE, Manifest, Shard, Split, write_manifest
from pretrain.data.shards import INDEX_DTYPE
from pretrain.errors import DataError, run_command
from pretrain.files import read_json

_SHOWN = 20
_MOST_IMAGE_BYTES = 256 * 2**20
_MOST_LABEL_BYTES = 64
_NUMBERED = re.compile(r"(.*?)(\d+)\.tar")
_WORDNET_ID = re.compile(r"n\d{8}(?!\d)")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}

Record = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Indexed:
    """One shard after its walk: what the manifest says of it, its records, and what is wrong."""

    bytes: int
    sha256: str
    records: list[Record]
    wordnet_ids: dict[int, dict[str, str]]
    """Label → WordNet id in the keys → the first such key."""
    problems: list[str]


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
    _refuse(_label_problems(indexed, classes))
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
    parser.add_argument("--classes", type=Path, metavar="FILE", help="id[<TAB>name] by label")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: all cores)"
    )
    options = parser.parse_args(arguments)
    check_options(options.name, 1, 0, options.workers)
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
    paths = sorted(source.rglob("*.tar"))
    if not paths:
        raise DataError(f"{source}: expected .tar files in it, found none")
    by_name: dict[str, Path] = {}
    series: dict[str, dict[int, Path]] = {}
    for path in paths:
        if path.name in by_name:
            raise DataError(
                f"{path}: has the same name as {by_name[path.name]}; a shard set is one directory: "
                "rename one of them"
            )
        by_name[path.name] = path
        numbered = _NUMBERED.fullmatch(path.name)
        if numbered is None:
            raise DataError(f"{path}: expected a name that ends in a number, as train-0000.tar")
        series.setdefault(numbered[1], {})[int(numbered[2])] = path
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
        futures = {pool.submit(_index_shard, path): path for path in paths}
        for future in as_completed(futures):
            indexed[futures[future]] = future.result()
            advance(1)
    return indexed


def _index_shard(path: Path) -> Indexed:
    records: list[Record] = []
    wordnet_ids: dict[int, dict[str, str]] = {}
    problems: list[str] = []
    try:
        with path.open("rb") as file:
            samples = _samples(file.fileno(), problems)
            for key, members in samples:
                record = _record(file.fileno(), key, members, problems)
                if record is not None:
                    records.append(record)
                    found = _WORDNET_ID.match(key.rpartition("/")[2])
                    if found:
                        wordnet_ids.setdefault(record[2], {}).setdefault(found[0], key)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        return Indexed(0, "", [], {}, [f"cannot be read: {error.strerror}"])
    if not records and not problems:
        problems.append("an empty tar: no sample in it; fetch it again")
    return Indexed(size, digest, records, wordnet_ids, problems)


def _samples(descriptor: int, problems: list[str]) -> list[tuple[str, dict[str, Member]]]:
    samples: list[tuple[str, dict[str, Member]]] = []
    seen: set[str] = set()
    try:
        for member in walk(descriptor):
            key, extension = split_name(member.name)
            if not samples or samples[-1][0] != key:
                if key in seen:
                    problems.append(f"{key}: its members do not follow each other")
                seen.add(key)
                samples.append((key, {}))
            if extension in samples[-1][1]:
                problems.append(f"{key}: two members {extension!r}")
            samples[-1][1][extension] = member
    except TarError as error:
        problems.append(f"{error}; fetch it again")
    return samples


def _record(
    descriptor: int, key: str, members: dict[str, Member], problems: list[str]
) -> Record | None:
    images = [member for extension, member in members.items() if is_image(extension)]
    if len(images) != 1:
        problems.append(f"{key}: expected one image, found {', '.join(sorted(members))}")
        return None
    if "cls" not in members:
        problems.append(f"{key}: .cls is missing, found {', '.join(sorted(members))}")
        return None
    text = os.pread(descriptor, _MOST_LABEL_BYTES, members["cls"].offset)[: members["cls"].bytes]
    if not re.fullmatch(rb"\d{1,9}\s*", text) or members["cls"].bytes > _MOST_LABEL_BYTES:
        problems.append(f"{key}: .cls: expected a label as decimal number, got {text!r}")
        return None
    image = images[0]
    if not 0 < image.bytes <= _MOST_IMAGE_BYTES:
        problems.append(f"{key}: image of {image.bytes:,} bytes")
        return None
    data = os.pread(descriptor, image.bytes, image.offset)
    return image.offset, image.bytes, int(text), zlib.crc32(image.header_name), zlib.crc32(data)


def _read_classes(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    pairs = [line.partition("\t") for line in lines if line.strip()]
    ids = tuple(wnid.strip() for wnid, _, _ in pairs)
    if not ids or len(set(ids)) != len(ids):
        raise DataError(f"{path}: expected one class id a line, each once, in order of the labels")
    return ids, tuple(text.strip() or wnid.strip() for wnid, _, text in pairs)


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
            f"{source}: no key says which class label {unknown[0]} is ({len(set(unknown))} such "
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


def _label_problems(indexed: dict[Path, Indexed], classes: tuple[str, ...]) -> list[str]:
    problems: list[str] = []
    for path, shard in indexed.items():
        outside = sorted({r[2] for r in shard.records if r[2] >= len(classes)})
        problems += [f"{path}: label {n}, expected 0 to {len(classes) - 1}" for n in outside]
        for label, found in shard.wordnet_ids.items():
            for wnid, key in found.items():
                if label < len(classes) and classes[label] != wnid:
                    problems.append(
                        f"{path}: {key}: its key says {wnid}, its label {label} is {classes[label]}"
                        "; the class list has another order, or the shard is mislabelled"
                    )
    return problems


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
