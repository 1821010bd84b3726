"""Packs a source into shards; the bytes do not depend on the number of processes."""

import hashlib
import io
import json
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from webdataset.writer import TarWriter

from data_tools.raw import RawReader
from data_tools.sources import Images, Skipped, Source
from pretrain.data.decode import ImageError
from pretrain.data.manifest import Shard, index_path
from pretrain.data.shards import INDEX_DTYPE, TAR_BLOCK_BYTES
from pretrain.files import read_json, replace_text

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

RECORD_SUFFIX = ".done"
"""Of the file beside a shard that says it is complete; an interrupted build goes by these."""
_SHUFFLE = 0
_MEMBER_OVERHEAD_BYTES = 5 * TAR_BLOCK_BYTES
"""Of a sample beside its image: three headers, the label and the metadata."""


@dataclass(frozen=True)
class _Task:
    """One shard to write: positions of its images in the split."""

    file: Path
    split: str
    number: int
    chosen: NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """One shard written: what the manifest says of it, the labels in it, files with a story.

    ``repaired`` are in the shard, with what was done to them as the reason; ``skipped`` are not.
    """

    split: str
    number: int
    shard: Shard | None
    labels: frozenset[int]
    skipped: list[Skipped]
    repaired: list[Skipped]


@dataclass(frozen=True)
class _Job:
    """What every process needs to know; inherited by fork, never sent."""

    source: Source
    readers: dict[str, RawReader]

    def write(self, task: _Task) -> Packed:
        """Write the shard of a task, unless an interrupted build has finished it."""
        packed = _finished(task)
        if packed is None:
            packed = _write_shard(task, self.source, self.readers[task.split])
            record = {
                "shard": None if packed.shard is None else asdict(packed.shard),
                "labels": sorted(packed.labels),
                "skipped": [[item.path, item.reason] for item in packed.skipped],
                "repaired": [[item.path, item.reason] for item in packed.repaired],
            }
            replace_text(_record_path(task), json.dumps(record))
        return packed


_job: _Job | None = None


def _adopt(job: _Job) -> None:
    global _job
    _job = job


def _write_in_pool(task: _Task) -> Packed:
    if _job is None:
        raise RuntimeError("no source: the pool was not started by pack()")
    return _job.write(task)


def pack(
    source: Source,
    directory: Path,
    *,
    name: str,
    shard_bytes: int,
    seed: int,
    workers: int,
    on_images: Callable[[int], None],
    max_side: int | None = None,
) -> list[Packed]:
    """Write the shards and indices of every split into ``directory``.

    Each split is shuffled as a whole by ``seed`` and cut into shards of about ``shard_bytes``.
    Shards that an earlier, interrupted call with the same arguments finished are kept.

    Args:
        source: the images.
        directory: an existing directory, empty or with what an interrupted call left.
        name: beginning of the file names.
        shard_bytes: size aimed at.
        seed: of the shuffle.
        workers: processes; 1 packs in this one.
        on_images: called here, after each shard, with the number of files gone through for it.
        max_side: larger images are made this large and stored as JPEG.

    Returns:
        One entry per shard, by split and number; those without a usable image have no ``shard``.

    Raises:
        OSError: a shard cannot be written.
    """
    tasks = [
        task
        for split, images in source.splits.items()
        for task in _tasks(split, images, directory / f"{name}-{split}", shard_bytes, seed)
    ]
    readers = {split: RawReader(images, max_side) for split, images in source.splits.items()}
    packed: list[Packed] = []
    try:
        for task, done in _written(_Job(source, readers), tasks, workers):
            packed.append(done)
            on_images(len(task.chosen))
    finally:
        for reader in readers.values():
            reader.close()
    return sorted(packed, key=lambda item: (item.split, item.number))


def _written(job: _Job, tasks: list[_Task], workers: int) -> Iterator[tuple[_Task, Packed]]:
    """Write every shard; yields them as they are finished."""
    if workers == 1 or len(tasks) == 1:
        for task in tasks:
            yield task, job.write(task)
        return
    # Forked before any thread runs here: the children inherit the lists of images.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _adopt, (job,)) as pool:
        futures = {pool.submit(_write_in_pool, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _tasks(
    split: str, images: Images, prefix: Path, shard_bytes: int, seed: int
) -> Iterator[_Task]:
    for number, chosen in enumerate(_shards_of(images, split, shard_bytes, seed)):
        file = prefix.with_name(f"{prefix.name}-{number:06d}.tar")
        yield _Task(file, split, number, chosen)


def _record_path(task: _Task) -> Path:
    return task.file.with_suffix(RECORD_SUFFIX)


def _finished(task: _Task) -> Packed | None:
    """The shard as an interrupted build left it; None where it is not whole."""
    record = read_json(_record_path(task))
    if record is None:
        return None
    shard = None if record["shard"] is None else Shard(**record["shard"])
    if shard is not None:
        index = index_path(task.file.parent, shard)
        if not (task.file.is_file() and index.is_file()):
            return None
        if task.file.stat().st_size != shard.bytes:
            return None
        if hashlib.sha256(index.read_bytes()).hexdigest() != shard.index_sha256:
            return None
    skipped = [Skipped(*item) for item in record["skipped"]]
    repaired = [Skipped(*item) for item in record["repaired"]]
    return Packed(task.split, task.number, shard, frozenset(record["labels"]), skipped, repaired)


def _shards_of(images: Images, split: str, shard_bytes: int, seed: int) -> list[NDArray[np.int64]]:
    """Shuffle the split and cut it into runs of nearly equal size."""
    stream = int.from_bytes(hashlib.sha256(split.encode()).digest()[:8], "little")
    philox = np.random.Philox(key=[seed, stream], counter=[0, 0, _SHUFFLE, 0])
    order = np.argsort(philox.random_raw(len(images.labels)), kind="stable")
    ends = images.sizes[order].astype(np.int64)
    ends += _MEMBER_OVERHEAD_BYTES
    np.cumsum(ends, out=ends)
    total = int(ends[-1])
    count = max(1, round(total / shard_bytes))
    # A shard begins with the first image that begins at or behind its share of the bytes.
    shares = np.array([-(-number * total // count) for number in range(1, count)], dtype=np.int64)
    firsts = np.unique(np.searchsorted(ends, shares) + 1)
    return np.split(order, firsts[firsts < len(order)])


def _write_shard(task: _Task, source: Source, reader: RawReader) -> Packed:
    images = source.splits[task.split]
    paths, labels = images.subset(task.chosen).paths, images.labels[task.chosen].tolist()
    skipped: list[Skipped] = []
    repaired: list[Skipped] = []
    records: list[tuple[int, int, int, int, int]] = []
    hashing = _HashingFile(task.file)
    with io.BufferedWriter(hashing, 2**20) as file:
        with TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
            for i, (path, label) in enumerate(zip(paths, labels, strict=True)):
                try:
                    image = reader.read(int(task.chosen[i]))
                except ImageError as error:
                    skipped.append(Skipped(path, str(error)))
                    continue
                repaired += [Skipped(path, repair) for repair in image.repairs]
                key = f"{task.number:06d}_{i:06d}"
                meta = {"source": path, "wnid": source.classes[label]}
                sample = {
                    "cls": str(label).encode(),
                    image.extension: image.data,
                    "json": json.dumps(meta, ensure_ascii=False).encode(errors="surrogateescape"),
                }
                records.append(_record(tar.tarstream.offset, key, image.extension, sample, label))
                tar.write({"__key__": key, **sample})
        file.flush()
        os.fsync(file.fileno())
    if not records:
        task.file.unlink()
        return Packed(task.split, task.number, None, frozenset(), skipped, repaired)
    index = np.array(records, dtype=INDEX_DTYPE).tobytes()
    with task.file.with_suffix(".idx").open("wb") as file:
        file.write(index)
        file.flush()
        os.fsync(file.fileno())
    shard = Shard(
        file=task.file.name,
        samples=len(records),
        bytes=hashing.bytes_written,
        sha256=hashing.digest.hexdigest(),
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    stored = frozenset(label for _, _, label, _, _ in records)
    return Packed(task.split, task.number, shard, stored, skipped, repaired)


def _record(
    tar_offset: int, key: str, extension: str, sample: dict[str, bytes], label: int
) -> tuple[int, int, int, int, int]:
    """The image's record; members follow each other sorted by extension, as TarWriter does it."""
    before = sorted(sample)[: sorted(sample).index(extension)]
    offset = tar_offset + TAR_BLOCK_BYTES
    for other in before:
        offset += TAR_BLOCK_BYTES + -(-len(sample[other]) // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
    data = sample[extension]
    name = f"{key}.{extension}".encode()
    return offset, len(data), label, zlib.crc32(name), zlib.crc32(data)


class _HashingFile(io.FileIO):
    """A new file that digests what is written to it."""

    def __init__(self, path: Path):
        super().__init__(path, "w")
        self.digest = hashlib.sha256()
        self.bytes_written = 0

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write and digest; returns the bytes taken."""
        taken = super().write(data)
        self.digest.update(memoryview(data)[:taken])
        self.bytes_written += taken
        return taken
