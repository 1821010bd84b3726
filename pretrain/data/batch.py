"""One batch of images, and how a worker makes it from its number."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from pretrain.data.crop import eval_image, train_image
from pretrain.data.decode import DecodeBuffer, ImageError
from pretrain.data.order import SampleOrder
from pretrain.data.shards import BadSampleError, ShardReader
from pretrain.errors import DataError
from pretrain.world import World

_REPLACEMENTS_TRIED = 64


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be used: its shard's file name, its key (or position), and why."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}, {self.key}: {self.reason}"


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    Attributes:
        images: uint8 [B, 3, H, W], RGB.
        labels: int64 [B], positions in the manifest's class list.
        sample_ids: int64 [B], in manifest order within the split; -1 where not valid.
        seeds: int64 [B], non-negative; all of a sample's randomness (0 in evaluation). A replaced
            sample keeps the seed of the one it stands for.
        valid: bool [B]; False only in evaluation, for padding and for unreadable samples, whose
            images and labels are zeros.
        bad: samples that could not be used while making this batch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor
    seeds: torch.Tensor
    valid: torch.Tensor
    bad: tuple[BadSample, ...]

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which copies to a GPU overlap with work."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            sample_ids=self.sample_ids.pin_memory(),
            seeds=self.seeds.pin_memory(),
            valid=self.valid.pin_memory(),
        )


@dataclass(frozen=True)
class Failure:
    """A `DataError` on its way from a worker: raised there it would arrive as a traceback."""

    message: str


@dataclass
class TrainSource(Dataset):
    """Micro-batches of one rank by number: number n is micro-batch n % A of step n // A."""

    reader: ShardReader
    order: SampleOrder
    image_size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    micro_batch: int
    accumulation: int
    world: World
    _buffer: DecodeBuffer = field(default_factory=DecodeBuffer)

    def __getitem__(self, number: int) -> Batch | Failure:
        try:
            return self._make(self.first_position(number))
        except DataError as error:
            return Failure(str(error))

    def first_position(self, number: int) -> int:
        """Where in the endless stream the micro-batch of that number begins."""
        step, micro = divmod(number, self.accumulation)
        per_rank = self.accumulation * self.micro_batch
        first = step * per_rank * self.world.size + self.world.rank * per_rank
        return first + micro * self.micro_batch

    def _make(self, first_position: int) -> Batch:
        run = self.order.at(first_position, self.micro_batch)
        made = _Made(self.micro_batch, self.image_size)
        # Shard by shard and front to back: neighbours in a shard are read together.
        for slot in np.argsort(run.sample_ids, kind="stable").tolist():
            seed = int(run.seeds[slot])
            made.seeds[slot] = seed
            for sample_id in self._candidates(int(run.sample_ids[slot]), first_position + slot):
                if self._put(made, slot, sample_id, seed):
                    break
            else:
                raise DataError(
                    f"{_REPLACEMENTS_TRIED} samples in a row cannot be used, the last: "
                    f"{made.bad[-1]}; check that {self.reader.root} is intact"
                )
        return made.batch()

    def _candidates(self, sample_id: int, position: int) -> Iterator[int]:
        """The sample itself, then those at the next positions of the stream."""
        yield sample_id
        yield from self.order.at(position + 1, _REPLACEMENTS_TRIED - 1).sample_ids.tolist()

    def _put(self, made: "_Made", slot: int, sample_id: int, seed: int) -> bool:
        def to_image(data: bytes) -> torch.Tensor:
            return train_image(
                data, seed, self.image_size, self.crop_scale, self.crop_ratio, self._buffer
            )

        return made.put(slot, sample_id, self.reader, to_image)


@dataclass
class EvalSource(Dataset):
    """Batches of one rank by number: the split in order, cut into batches, dealt to the ranks."""

    reader: ShardReader
    samples: int
    image_size: int
    resize_short_side: int | None
    batch_size: int
    world: World
    _buffer: DecodeBuffer = field(default_factory=DecodeBuffer)

    def __getitem__(self, number: int) -> Batch | Failure:
        first = (number * self.world.size + self.world.rank) * self.batch_size
        made = _Made(self.batch_size, self.image_size)
        try:
            for slot in range(max(0, min(self.batch_size, self.samples - first))):
                made.put(slot, first + slot, self.reader, self._to_image)
        except DataError as error:
            return Failure(str(error))
        return made.batch()

    def _to_image(self, data: bytes) -> torch.Tensor:
        return eval_image(data, self.image_size, self.resize_short_side, self._buffer)


class _ToImage(Protocol):
    def __call__(self, data: bytes) -> torch.Tensor: ...


class _Made:
    """A batch while it is filled, slot by slot."""

    def __init__(self, size: int, image_size: int):
        self.images = torch.zeros((size, 3, image_size, image_size), dtype=torch.uint8)
        self.labels = torch.zeros(size, dtype=torch.int64)
        self.sample_ids = torch.full((size,), -1, dtype=torch.int64)
        self.seeds = torch.zeros(size, dtype=torch.int64)
        self.bad: list[BadSample] = []

    def put(self, slot: int, sample_id: int, reader: ShardReader, to_image: _ToImage) -> bool:
        """Fill a slot; False (and the reason noted) when the sample cannot be used."""
        shard, position = reader.locate(sample_id)
        try:
            sample = reader.read(sample_id)
            try:
                self.images[slot] = to_image(sample.data)
            except ImageError as error:
                raise BadSampleError(str(error), sample.key) from None
        except BadSampleError as error:
            key = error.key or f"sample {position}"
            self.bad.append(BadSample(shard.file, key, str(error)))
            return False
        self.labels[slot] = sample.label
        self.sample_ids[slot] = sample_id
        return True

    def batch(self) -> Batch:
        return Batch(
            images=self.images,
            labels=self.labels,
            sample_ids=self.sample_ids,
            seeds=self.seeds,
            valid=self.sample_ids >= 0,
            bad=tuple(self.bad),
        )
