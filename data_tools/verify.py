"""Checks a whole shard set: every byte against its digests, every tar header against the index.

python -m data_tools.verify SHARD_SET [--decode]

Each shard and index is hashed and compared with the manifest, the manifest with its own digest.
Each tar is walked header by header and must hold exactly the samples of its index: name, place,
size, label and checksum. --decode also decodes every image. Damage is listed by shard and sample;
the exit code is 0 when everything is whole, 1 on any damage, 2 when there is nothing to check.
Shards that lie there without being in the manifest are never read; they are mentioned.
SHARD_SET may be a URL: its files then pass through this machine's cache.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_tools.build import available_cores
from data_tools.progress import progress_bar
from data_tools.tar_headers import Member, TarError
from data_tools.tar_walk import walk
from pretrain.config.schema import DataConfig
from pretrain.data.cache import ShardCache
from pretrain.data.decode import ImageError, decode_rgb, read_header
from pretrain.data.manifest import (
    INDEX_RECORD_BYTES,
    MANIFEST_FILE,
    TIMM_INFO_FILE,
    Manifest,
    Shard,
    index_path,
    read_manifest,
    timm_info_text,
)
from pretrain.data.remote import LAUNCH_PATIENCE, read_bytes
from pretrain.data.shards import INDEX_DTYPE
from pretrain.errors import DataError, run_command
from pretrain.files import replace_text
from pretrain.location import RemoteFile, fault_of, is_remote

_MOST_INFO_BYTES = 2**28
_LABEL_EXTENSION, _METADATA_EXTENSION = "cls", "json"
_SHOWN, _SHOWN_PER_FILE = 40, 5
_caches: dict[str, ShardCache] = {}


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it should be: in which file, and what."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(frozen=True)
class Verified:
    """What was checked and found.

    Attributes:
        root: the shard set, as it was named.
        shards: number checked.
        samples: number the manifest promises.
        damage: everything found, by shard.
        strangers: tars beside the shards that the manifest does not name; they harm nobody here,
            but other readers take whatever ends in .tar.
    """

    root: str
    shards: int
    samples: int
    damage: tuple[Damage, ...]
    strangers: tuple[str, ...] = ()


def verify(
    directory: Path, *, decode: bool, workers: int, remote: DataConfig | None = None
) -> Verified:
    """Check a shard set.

    Args:
        directory: the one that holds ``manifest.json``.
        decode: also decode every image.
        workers: processes.
        remote: instead of the directory, which remote set, and how to cache it.

    Raises:
        DataError: there is no shard set.
    """
    try:
        manifest = _manifest(directory, remote)
    except DataError as error:
        if remote is not None or not (directory / MANIFEST_FILE).exists():
            raise
        # What the labels mean and which bytes are right is unknown then: nothing else to check.
        what = str(error).removeprefix(f"{directory.absolute() / MANIFEST_FILE}: ")
        return Verified(str(directory), 0, 0, (Damage(MANIFEST_FILE, what),))
    caches = {s: ShardCache(manifest, s, remote) for s in manifest.splits} if remote else {}
    shards = [
        (split.name, number, manifest.root, shard, len(manifest.classes), decode)
        for split in manifest.splits.values()
        for number, shard in enumerate(split.shards)
    ]
    damage = _check_timm_info(manifest)
    samples = sum(split.samples for split in manifest.splits.values())
    context = multiprocessing.get_context("fork")
    with (
        progress_bar("verifying", samples) as advance,
        ProcessPoolExecutor(
            min(workers, len(shards)), context, initializer=_use_caches, initargs=(caches,)
        ) as pool,
    ):
        futures = {
            pool.submit(_fetch_and_check, *arguments): number
            for number, arguments in enumerate(shards)
        }
        found: dict[int, list[Damage]] = {}
        try:
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                advance(shards[futures[future]][3].samples)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    damage += [item for number in sorted(found) for item in found[number]]
    named = {shard.file for split in manifest.splits.values() for shard in split.shards}
    tars = {path.name for path in manifest.root.glob("*.tar")} if remote is None else set()
    strangers = tuple(sorted(tars - named))
    return Verified(manifest.location, len(shards), samples, tuple(damage), strangers)


def _manifest(directory: Path, remote: DataConfig | None) -> Manifest:
    if remote is None:
        return read_manifest(directory)
    return read_manifest(remote.path, cache_dir=remote.cache_dir, allow_pipe=remote.allow_pipe)


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shard_set", help="directory that holds manifest.json, or its URL")
    parser.add_argument("--decode", action="store_true", help="also decode every image")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all damage there, JSON")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: all cores)"
    )
    _add_remote_options(parser)
    options = parser.parse_args(arguments)
    if not 1 <= options.workers < 2**16:
        raise DataError(f"--workers: expected at least 1, got {options.workers}")
    result = verify(
        Path(options.shard_set),
        decode=options.decode,
        workers=options.workers,
        remote=_remote(options) if is_remote(options.shard_set) else None,
    )
    if options.report is not None:
        document = {**asdict(result), "decoded": options.decode}
        try:
            replace_text(options.report, json.dumps(document, indent=1) + "\n")
        except OSError as error:
            raise DataError(f"{options.report}: cannot be written: {error.strerror}") from None
    print("\n".join(_summary(result, options.decode)))
    return 1 if result.damage else 0


def _summary(result: Verified, decoded: bool) -> list[str]:
    lines = [f"not in the manifest, never read: {name}" for name in result.strangers[:_SHOWN]]
    if not result.damage:
        return [
            *lines,
            f"{result.root}: whole: {result.shards} shards, {result.samples:,} samples hashed and "
            f"walked{' and decoded' if decoded else ''}",
        ]
    shown: Counter[str] = Counter()
    for item in result.damage:
        shown[item.file] += 1
        if shown[item.file] <= _SHOWN_PER_FILE and len(lines) < _SHOWN:
            lines.append(f"damaged: {item}")
    more = len(result.damage) - sum(line.startswith("damaged: ") for line in lines)
    if more:
        lines.append(f"… and {more:,} more (--report FILE lists all)")
    lines.append(
        f"{result.root}: DAMAGED: {len(result.damage):,} faults in {len(shown):,} files; copy "
        "those files again from where they are whole, or build the set again"
    )
    return lines


def _add_remote_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("for a URL")
    group.add_argument("--cache-dir", metavar="DIR", help="as data.cache_dir")
    group.add_argument("--cache-gib", type=float, default=20.0, help="GiB kept there (default: 20)")
    group.add_argument("--allow-pipe", action="store_true", help="it may be pipe:COMMAND {file}")


def _remote(options: argparse.Namespace) -> DataConfig:
    if not 0 < options.cache_gib < math.inf:
        raise DataError(f"--cache-gib: expected more than 0, got {options.cache_gib:g}")
    fault = fault_of(options.shard_set, allow_pipe=options.allow_pipe)
    if fault is not None:
        raise DataError(fault)
    return DataConfig(
        path=options.shard_set,
        allow_pipe=options.allow_pipe,
        cache_dir=options.cache_dir,
        cache_gib=options.cache_gib,
    )


def _use_caches(caches: dict[str, ShardCache]) -> None:
    """Prepare a worker process, which has these by being forked."""
    _caches.update(caches)


def _fetch_and_check(
    split: str, number: int, root: Path, shard: Shard, num_classes: int, decode: bool
) -> list[Damage]:
    if split in _caches:
        try:
            _caches[split].fetch(number)
        except DataError as error:
            return [Damage(shard.file, str(error))]
    return _check_shard(root, shard, num_classes, decode)


def _check_timm_info(manifest: Manifest) -> list[Damage]:
    try:
        if manifest.url is None:
            found = (manifest.root / TIMM_INFO_FILE).read_bytes()
        else:
            file = RemoteFile(manifest.url, TIMM_INFO_FILE)
            found = read_bytes(file, _MOST_INFO_BYTES, LAUNCH_PATIENCE)
    except DataError as error:
        return [Damage(TIMM_INFO_FILE, str(error))]
    except OSError as error:
        return [Damage(TIMM_INFO_FILE, f"cannot be read: {error.strerror}")]
    if found != timm_info_text(manifest).encode():
        return [Damage(TIMM_INFO_FILE, "does not say what the manifest says")]
    return []


def _check_shard(root: Path, shard: Shard, num_classes: int, decode: bool) -> list[Damage]:
    """Everything wrong with one shard and its index."""
    index_name = index_path(root, shard).name
    index_fault = _file_fault(
        root / index_name, shard.samples * INDEX_RECORD_BYTES, shard.index_sha256
    )
    shard_fault = _file_fault(root / shard.file, shard.bytes, shard.sha256)
    damage = [] if index_fault is None else [Damage(index_name, index_fault)]
    if index_fault is not None or not (root / shard.file).is_file():
        return damage if shard_fault is None else [Damage(shard.file, shard_fault), *damage]
    records = np.fromfile(root / index_name, INDEX_DTYPE)
    try:
        with (root / shard.file).open("rb", buffering=0) as file:
            check = _Samples(file.fileno(), records, num_classes, decode)
            faults = list(check.faults())
    except OSError as error:
        check, faults = None, [f"cannot be read: {error.strerror}"]
    # What is wrong with the file as a whole is one fault, in one line.
    whole = [shard_fault, None if check is None else check.whole]
    said = "; ".join(what for what in whole if what is not None)
    return [Damage(shard.file, what) for what in ([said] if said else []) + faults]


def _file_fault(path: Path, expected_bytes: int, expected_sha256: str) -> str | None:
    """What is wrong with a file against its size and digest."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            return "it is no file"  # reading a pipe or a device might never end
        if size != expected_bytes:
            return f"{size:,} bytes, the manifest says {expected_bytes:,}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if digest == expected_sha256 else "its sha256 is not the manifest's"


class _Samples:
    """Compares the members of one tar with the records of its index, in order."""

    def __init__(self, descriptor: int, records: np.ndarray, num_classes: int, decode: bool):
        self._descriptor = descriptor
        self._records = records
        self._num_classes = num_classes
        self._decode = decode
        self.whole: str | None = None

    def faults(self) -> Iterator[str]:
        """What is wrong with samples; what is wrong with the tar itself is then in ``whole``."""
        position = 0
        sample: dict[str, Member] = {}
        current: str | None = None
        try:
            for member in walk(self._descriptor):
                key, extension = split_name(member.name)
                if key != current and sample:
                    yield from self._compare(position, str(current), sample)
                    position, sample = position + 1, {}
                current = key
                if extension in sample:
                    yield f"{key}: two members {extension!r}"
                sample[extension] = member
        except TarError as error:
            self.whole = str(error)
            return
        if sample:
            yield from self._compare(position, str(current), sample)
            position += 1
        if position < len(self._records):
            self.whole = f"{position} samples, its index has {len(self._records)}"

    def _compare(self, position: int, key: str, sample: dict[str, Member]) -> Iterator[str]:
        if position >= len(self._records):
            yield f"{key}: not in the index"
            return
        record = self._records[position]
        images = [item for name, item in sample.items() if is_image(name)]
        if len(images) != 1 or _LABEL_EXTENSION not in sample:
            yield f"{key}: expected a label and one image, found {', '.join(sorted(sample))}"
            return
        image = images[0]
        name_crc32 = zlib.crc32(image.header_name)
        if (image.offset, image.bytes, name_crc32) != (
            record["offset"],
            record["bytes"],
            record["name_crc32"],
        ):
            yield f"{key}: name, place or size are not those in the index"
            return
        label = self._read(sample[_LABEL_EXTENSION])
        if label.strip() != b"%d" % record["label"]:
            yield f"{key}: label {label[:20]!r}, the index says {record['label']}"
        if not 0 <= record["label"] < self._num_classes:
            yield f"{key}: label {record['label']}, expected 0 to {self._num_classes - 1}"
        data = self._read(image)
        if zlib.crc32(data) != record["data_crc32"]:
            yield f"{key}: the image's bytes are not those that were indexed"
        elif self._decode:
            yield from self._decoded(key, data)

    def _decoded(self, key: str, data: bytes) -> Iterator[str]:
        try:
            decode_rgb(data, read_header(data))
        except ImageError as error:
            yield f"{key}: cannot be decoded: {error}"

    def _read(self, member: Member) -> bytes:
        return os.pread(self._descriptor, member.bytes, member.offset)


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, cut at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def is_image(extension: str) -> bool:
    """Whether members with that extension hold the image of a sample."""
    return extension in ("jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff")


if __name__ == "__main__":
    run_command(main)
