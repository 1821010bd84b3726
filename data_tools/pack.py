"""Packs a source into shards; the bytes do not depend on the number of processes."""

import hashlib
import io
import json
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from webdataset.writer import TarWriter

from data_tools.sources import Images, Source
from pretrain.data.decode import ImageError, decode_rgb, read_header
from pretrain.data.manifest import Shard
from pretrain.data.shards import INDEX_DTYPE, TAR_BLOCK_BYTES
from pretrain.errors import DataError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAX_IMAGE_BYTES = 256 * 2**20
_SHUFFLE = 0
_MEMBER_OVERHEAD_BYTES = 5 * TAR_BLOCK_BYTES
"""Of a sample beside its image: three headers, the label and the metadata."""


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, by its path in the source, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class _Task:
    """One shard to write, and the images for it."""

    file: Path
    split: str
    number: int
    root: Path
    paths: list[str]
    labels: list[int]
    wnids: list[str]


@dataclass(frozen=True)
class Packed:
    """One shard written: what the manifest says of it, the labels in it, files left out."""

    split: str
    number: int
    shard: Shard | None
    labels: frozenset[int]
    skipped: list[Skipped]


def pack(
    source: Source,
    directory: Path,
    *,
    name: str,
    shard_bytes: int,
    seed: int,
    workers: int,
    on_images: Callable[[int], None],
) -> list[Packed]:
    """Write the shards and indices of every split into ``directory``.

    Each split is shuffled as a whole by ``seed`` and cut into shards of about ``shard_bytes``.

    Args:
        source: the images.
        directory: an existing, empty directory.
        name: beginning of the file names.
        shard_bytes: size aimed at.
        seed: of the shuffle.
        workers: processes; 1 packs in this one.
        on_images: called here, after each shard, with the number of files gone through for it.

    Returns:
        One entry per shard, by split and number; those without a usable image have no ``shard``.

    Raises:
        DataError: a shard cannot be written.
    """
    tasks = [
        task
        for split, images in source.splits.items()
        for task in _tasks(source, split, images, directory / f"{name}-{split}", shard_bytes, seed)
    ]
    packed: list[Packed] = []
    try:
        if workers == 1 or len(tasks) == 1:
            for task in tasks:
                packed.append(_write_shard(task))
                on_images(len(task.paths))
        else:
            # Forked before any thread runs here: the children inherit what took long to import.
            context = multiprocessing.get_context("fork")
            with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
                futures = {pool.submit(_write_shard, task): task for task in tasks}
                try:
                    for future in as_completed(futures):
                        packed.append(future.result())
                        on_images(len(futures[future].paths))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    except OSError as error:
        raise DataError(f"{directory}: cannot be written: {error.strerror}") from None
    return sorted(packed, key=lambda item: (item.split, item.number))


def _tasks(
    source: Source, split: str, images: Images, prefix: Path, shard_bytes: int, seed: int
) -> Iterator[_Task]:
    for number, chosen in enumerate(_shards_of(images, split, shard_bytes, seed)):
        labels = images.labels[chosen].tolist()
        yield _Task(
            file=prefix.with_name(f"{prefix.name}-{number:06d}.tar"),
            split=split,
            number=number,
            root=source.root,
            paths=[images.paths[i] for i in chosen],
            labels=labels,
            wnids=[source.classes[label] for label in labels],
        )


def _shards_of(images: Images, split: str, shard_bytes: int, seed: int) -> list[NDArray[np.int64]]:
    """Shuffle the split and cut it into runs of nearly equal size."""
    stream = int.from_bytes(hashlib.sha256(split.encode()).digest()[:8], "little")
    philox = np.random.Philox(key=[seed, stream], counter=[0, 0, _SHUFFLE, 0])
    order = np.argsort(philox.random_raw(len(images.paths)), kind="stable")
    stored = images.sizes[order] + _MEMBER_OVERHEAD_BYTES
    ends = np.cumsum(stored)
    count = max(1, round(int(ends[-1]) / shard_bytes))
    number = (ends - stored) * count // ends[-1]
    return np.split(order, np.flatnonzero(np.diff(number)) + 1)


def _write_shard(task: _Task) -> Packed:
    skipped: list[Skipped] = []
    records: list[tuple[int, int, int, int, int]] = []
    hashing = _HashingFile(task.file)
    with io.BufferedWriter(hashing, 2**20) as file:
        with TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
            for i, (path, label) in enumerate(zip(task.paths, task.labels, strict=True)):
                try:
                    data, extension = _read_image(task.root / path)
                except ImageError as error:
                    skipped.append(Skipped(path, str(error)))
                    continue
                key = f"{task.number:06d}_{i:06d}"
                meta = json.dumps({"source": path, "wnid": task.wnids[i]}, ensure_ascii=False)
                sample = {"cls": str(label).encode(), extension: data, "json": meta.encode()}
                records.append(_record(tar.tarstream.offset, key, extension, sample, label))
                tar.write({"__key__": key, **sample})
        file.flush()
        os.fsync(file.fileno())
    if not records:
        task.file.unlink()
        return Packed(task.split, task.number, None, frozenset(), skipped)
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
    labels = frozenset(label for _, _, label, _, _ in records)
    return Packed(task.split, task.number, shard, labels, skipped)


def _read_image(path: Path) -> tuple[bytes, str]:
    """A file's bytes and the extension for its content; `ImageError` when it is no image."""
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise ImageError(f"larger than {MAX_IMAGE_BYTES // 2**20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None
    header = read_header(data)
    decode_rgb(data, header)
    return data, header.extension


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
