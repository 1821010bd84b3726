"""Batches of images, made by worker processes that each know the order by themselves.

The unit of work is one micro-batch of one rank, addressed by its number. A worker computes the
micro-batch's sample ids from `SampleOrder`, fetches, decodes and crops them, and returns one
`Batch`. So neither the number of ranks nor of workers changes what is read, and any step can be
the first. A sample that cannot be used is reported and replaced by the next in order.
"""

import atexit
import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pretrain.config.schema import AugmentConfig, DataConfig, EvalConfig
from pretrain.data.batch import Batch, Slots
from pretrain.data.children import forking, serve
from pretrain.data.manifest import Manifest, Shard, check_shards
from pretrain.data.order import SampleOrder
from pretrain.data.remote_split import RemoteSplit, remote_eval_split, remote_train_split
from pretrain.data.shards import ShardReader
from pretrain.data.skips import Skip, batch_of_step
from pretrain.data.source import EvalSource, Failure, TrainSource
from pretrain.errors import DataError
from pretrain.world import World

MIN_SAMPLES_JUDGED = 1000
"""The share of bad samples is judged over at least this many."""
_EVALUATED_AT_A_TIME = 16


class Batches(Iterator[Batch]):
    """An iterator over batches that owns worker processes; close it, or use it in ``with``."""

    def __init__(
        self,
        source: TrainSource | EvalSource,
        numbers: Iterable[int],
        data: DataConfig,
        count_bad: "_BadCount",
        remote: RemoteSplit | None = None,
    ):
        workers = data.workers_per_rank
        self._reader = source.reader
        self._slots = source.slots
        self._remote = remote
        self._loader = DataLoader(
            source,
            batch_size=None,
            sampler=_Tasks(numbers, source.slots.count),
            num_workers=workers,
            prefetch_factor=data.prefetch_batches if workers else None,
            # Not forkserver: its server dies of the job's signals, and the workers with it.
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_Guard(os.getpid()) if workers else None,
        )
        with forking():
            self._batches = iter(self._loader)
        # Else a process that leaves without closing would wait for them for ever: it asks them to
        # end by a signal that they do not answer.
        atexit.register(self.close)
        self._bad = count_bad
        self._closed = False

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: more bad samples than the budget allows, or a damaged index.
        """
        if self._closed:
            raise StopIteration
        made = next(self._batches)
        if isinstance(made, Failure):
            raise DataError(made.message)
        if self._remote is not None:
            self._remote.advance()
        # A rank that computes on the CPU beside a GPU must not open a context on it.
        batch = self._slots[made.slot].copied(pinned=torch.cuda.is_initialized())
        batch = replace(batch, bad=made.bad)
        self._bad.add(batch)
        return batch

    def at_hand(self, sample_id: int) -> bytes | None:
        """The image file of a sample; None where its shard would have to be fetched.

        Raises:
            BadSampleError: it cannot be used.
            DataError: its shard's index is damaged.
        """
        return self._reader.read(sample_id).data if self._reader.is_here(sample_id) else None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; further iteration yields nothing."""
        self._closed = True
        atexit.unregister(self.close)
        self._reader.close()
        # Not left to the iterator's end: an error that a worker caused holds on to it.
        if isinstance(self._batches, _MultiProcessingDataLoaderIter):
            self._batches._shutdown_workers()
        self._batches = iter(())
        if self._remote is not None:
            self._remote.close()


def train_batches(
    manifest: Manifest,
    data: DataConfig,
    augment: AugmentConfig,
    *,
    seed: int,
    image_size: int,
    global_batch: int,
    micro_batch: int,
    accumulation: int,
    world: World,
    first_step: int,
    last_step: int,
    skips: Sequence[Skip] = (),
) -> Batches:
    """This rank's micro-batches of steps ``first_step`` to ``last_step - 1``, cropped, in order.

    Every rank calls it, from its main thread, with the same arguments but for ``world``; ranks do
    not communicate. Step t takes positions t·G to (t + 1)·G of the stream, or later ones by what is
    left out; micro-batch j of rank r is the part of that batch from (r·A + j)·m on.

    Args:
        manifest: the shard set.
        data: its section of the config.
        augment: for the random crop.
        seed: the run's.
        image_size: side of the images, pixels.
        global_batch: G, images of a step over all ranks.
        micro_batch: m, images of one micro-batch.
        accumulation: A, micro-batches of a rank in one step.
        world: this rank's place.
        first_step: 0-based; samples consumed before it are ``first_step * global_batch``.
        last_step: where to stop (exclusive).
        skips: global batches of the stream that are left out.

    Raises:
        DataError: the split or its shards are missing, or the batch sizes contradict each other.
    """
    _check_sizes(global_batch, micro_batch, accumulation, world)
    shards = manifest.split(data.train_split).shards
    check_shards(manifest, data.train_split, world.rank, world.size)
    order = train_order(manifest, data, seed)
    first = batch_of_step(first_step, skips)
    remote = remote_train_split(manifest, data, order, world, micro_batch, accumulation, first)
    source = TrainSource(
        reader=_reader(manifest, shards, remote, _most_open(order, world, global_batch)),
        order=order,
        slots=_slots(data, micro_batch, image_size),
        image_size=image_size,
        crop_scale=augment.crop_scale,
        crop_ratio=augment.crop_ratio,
        crop_filter=augment.crop_filter,
        micro_batch=micro_batch,
        accumulation=accumulation,
        world=world,
    )
    batches = (batch_of_step(step, skips) for step in range(first_step, last_step))
    numbers = (batch * accumulation + micro for batch in batches for micro in range(accumulation))
    bad = _BadCount(data.train_split, data.max_bad_fraction)
    return Batches(source, numbers, data, bad, remote)


def _check_sizes(global_batch: int, micro_batch: int, accumulation: int, world: World) -> None:
    if micro_batch * accumulation * world.size != global_batch:
        raise DataError(
            f"global batch {global_batch}: expected micro-batch * accumulation * ranks = "
            f"{micro_batch} * {accumulation} * {world.size}"
        )


def eval_batches(
    manifest: Manifest,
    split_name: str,
    data: DataConfig,
    eval: EvalConfig,
    *,
    image_size: int,
    world: World,
) -> Batches:
    """This rank's share of a split, in manifest order, each sample on exactly one rank.

    Every rank calls it, from its main thread, and gets the same number of batches of
    ``eval.batch_size_per_rank`` images; the last ones are padded with ``valid`` False. A sample
    that cannot be used is reported and not valid, never replaced.

    Raises:
        DataError: the split or its shards are missing, or images would be smaller than the crop.
    """
    if eval.resize is not None and eval.resize < image_size:
        raise DataError(
            f"eval.resize: {eval.resize} is smaller than the image size {image_size} that is cut "
            "out of it; use null to squash"
        )
    split = manifest.split(split_name)
    check_shards(manifest, split_name, world.rank, world.size)
    size = eval.batch_size_per_rank
    remote = remote_eval_split(manifest, split_name, data, world, size)
    source = EvalSource(
        reader=_reader(manifest, split.shards, remote, _EVALUATED_AT_A_TIME),
        samples=split.samples,
        slots=_slots(data, size, image_size),
        image_size=image_size,
        resize_short_side=eval.resize,
        batch_size=size,
        world=world,
    )
    numbers = range(-(-split.samples // (size * world.size)))
    return Batches(source, numbers, data, _BadCount(split_name, data.max_bad_fraction), remote)


def _reader(
    manifest: Manifest, shards: Sequence[Shard], remote: RemoteSplit | None, most_open: int
) -> ShardReader:
    cache = None if remote is None else remote.cache
    return ShardReader(manifest.root, shards, len(manifest.classes), cache, most_open)


def _most_open(order: SampleOrder, world: World, global_batch: int) -> int:
    """What a rank reads from at a time, and the next window of one lane in eight."""
    share = global_batch // world.size
    lanes = order.lanes_of(world.rank * share, (world.rank + 1) * share, global_batch)
    in_play = order.most_shards_in_play(lanes)
    return in_play + -(-in_play // 8)


def train_order(manifest: Manifest, data: DataConfig, seed: int) -> SampleOrder:
    """The order in which the samples of the training split come.

    Raises:
        DataError: there is no such split, or no sample in it.
    """
    return SampleOrder(
        [shard.samples for shard in manifest.split(data.train_split).shards],
        seed=seed,
        lanes=data.lanes,
        window_shards=data.window_shards,
    )


def _slots(data: DataConfig, batch_size: int, image_size: int) -> Slots:
    """As many as the workers may hold, and the one that the rank is emptying."""
    return Slots(data.workers_per_rank * data.prefetch_batches + 1, batch_size, image_size)


@dataclass(frozen=True)
class _Tasks:
    """What the workers are told: batches by number, each with the slot to put it in.

    A DataLoader never has more batches under way than workers · prefetch factor, and returns them
    in order, so that a slot is empty when its turn comes again.
    """

    numbers: Iterable[int]
    slots: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.numbers, cycle(range(self.slots)), strict=False)


class _BadCount:
    """Counts this rank's bad samples against the budget.

    A rank of a large job sees few samples, so chance alone can put it above the fraction. The
    budget therefore has a margin of four standard deviations of a Poisson count.
    """

    def __init__(self, split_name: str, max_fraction: float):
        self._split_name = split_name
        self._max_fraction = max_fraction
        self._read = 0
        self._bad = 0

    def add(self, batch: Batch) -> None:
        """Count a batch; `DataError` when the budget is exceeded."""
        self._read += int(batch.valid.sum()) + len(batch.bad)
        self._bad += len(batch.bad)
        expected = self._max_fraction * max(self._read, MIN_SAMPLES_JUDGED)
        if self._bad > expected + 4 * expected**0.5:
            raise DataError(
                f"split {self._split_name!r}: {self._bad} of {self._read} samples read cannot be "
                f"used, data.max_bad_fraction is {self._max_fraction:g}; the last: "
                f"{batch.bad[-1]}; mend the shards or raise the limit"
            )


@dataclass(frozen=True)
class _Guard:
    """Prepares a worker process: it outlives signals meant for the job, but not its rank."""

    rank_process: int

    def __call__(self, worker: int) -> None:
        # The rank saves after a signal to the job and still needs its workers to end in order.
        serve(self.rank_process)
        torch.set_num_threads(1)
        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
