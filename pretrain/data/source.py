"""How a worker makes one batch from its number."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from pretrain.data.batch import BadSample, Batch, Slots
from pretrain.data.crop import Filter, eval_image, train_image
from pretrain.data.decode import DecodeBuffer, ImageError
from pretrain.data.order import Run, SampleOrder
from pretrain.data.shards import BadSampleError, ShardReader
from pretrain.errors import DataError
from pretrain.world import World

REPLACEMENTS_TRIED = 64
"""A sample and those that may stand in for it; more bad ones in a row are no accident."""


@dataclass(frozen=True)
class Filled:
    """A slot that a worker has filled, and the samples it could not use on the way."""

    slot: int
    bad: tuple[BadSample, ...]


@dataclass(frozen=True)
class Failure:
    """A `DataError` on its way from a worker: raised there it would arrive as a traceback."""

    message: str


@dataclass
class TrainSource(Dataset):
    """Micro-batches of one rank by number: number n is micro-batch n % A of global batch n // A."""

    reader: ShardReader
    order: SampleOrder
    slots: Slots
    image_size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    micro_batch: int
    accumulation: int
    world: World
    crop_filter: Filter = "bicubic"
    _buffer: DecodeBuffer = field(default_factory=DecodeBuffer)

    def __getitem__(self, task: tuple[int, int]) -> Filled | Failure:
        """Make the micro-batch of a number in a slot."""
        number, slot = task
        filling = _Filling(self.slots[slot])
        try:
            self._fill(filling, self.samples(number))
        except DataError as error:
            return Failure(str(error))
        return Filled(slot, tuple(filling.bad))

    def samples(self, number: int) -> Run:
        """The samples of the micro-batch of that number."""
        batch, micro = divmod(number, self.accumulation)
        per_rank = self.accumulation * self.micro_batch
        first = self.world.rank * per_rank + micro * self.micro_batch
        return self.order.batch(batch, per_rank * self.world.size, first, self.micro_batch)

    def _fill(self, filling: "_Filling", run: Run) -> None:
        # Shard by shard and front to back: neighbours in a shard are read together.
        for place in np.argsort(run.sample_ids, kind="stable").tolist():
            seed = int(run.seeds[place])
            filling.batch.seeds[place] = seed
            position, first = int(run.positions[place]), int(run.sample_ids[place])
            for sample_id in self.order.candidates(position, first, REPLACEMENTS_TRIED):
                if self._put(filling, place, sample_id, seed):
                    break
            else:
                raise DataError(
                    f"{REPLACEMENTS_TRIED} samples in a row cannot be used, the last: "
                    f"{filling.bad[-1]}; check that {self.reader.root} is intact"
                )

    def _put(self, filling: "_Filling", place: int, sample_id: int, seed: int) -> bool:
        def to_image(data: bytes) -> torch.Tensor:
            return train_image(
                data,
                seed,
                self.image_size,
                self.crop_scale,
                self.crop_ratio,
                self._buffer,
                self.crop_filter,
            )

        return filling.put(place, sample_id, self.reader, to_image)


@dataclass
class EvalSource(Dataset):
    """Batches of one rank by number: the split in order, cut into batches, dealt to the ranks."""

    reader: ShardReader
    samples: int
    slots: Slots
    image_size: int
    resize_short_side: int | None
    batch_size: int
    world: World
    _buffer: DecodeBuffer = field(default_factory=DecodeBuffer)

    def __getitem__(self, task: tuple[int, int]) -> Filled | Failure:
        """Make the batch of a number in a slot."""
        number, slot = task
        first = (number * self.world.size + self.world.rank) * self.batch_size
        filling = _Filling(self.slots[slot])
        try:
            for place in range(self.batch_size):
                if first + place >= self.samples or not filling.put(
                    place, first + place, self.reader, self._to_image
                ):
                    filling.clear(place)
        except DataError as error:
            return Failure(str(error))
        return Filled(slot, tuple(filling.bad))

    def _to_image(self, data: bytes) -> torch.Tensor:
        return eval_image(data, self.image_size, self.resize_short_side, self._buffer)


class _ToImage(Protocol):
    def __call__(self, data: bytes) -> torch.Tensor: ...


class _Filling:
    """A slot while it is filled, image by image."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.bad: list[BadSample] = []

    def put(self, place: int, sample_id: int, reader: ShardReader, to_image: _ToImage) -> bool:
        """Fill a place; False (and the reason noted) when the sample cannot be used."""
        shard, position = reader.locate(sample_id)
        try:
            sample = reader.read(sample_id)
            try:
                self.batch.images[place] = to_image(sample.data)
            except ImageError as error:
                raise BadSampleError(str(error), sample.key) from None
        except BadSampleError as error:
            key = error.key or f"sample {position}"
            self.bad.append(BadSample(shard.file, key, str(error)))
            return False
        self.batch.labels[place] = sample.label
        self.batch.sample_ids[place] = sample_id
        return True

    def clear(self, place: int) -> None:
        """Leave a place empty."""
        self.batch.images[place] = 0
        self.batch.labels[place] = 0
        self.batch.sample_ids[place] = -1
