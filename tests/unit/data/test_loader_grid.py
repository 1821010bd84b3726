"""The order that training sees, over a grid of jobs and of ways to stop and resume them.

What runs here is the loader's own source of micro-batches; only fetching and decoding are replaced.
"""

import functools
from itertools import product

import numpy as np
import pytest
import torch

from pretrain.data import source as source_module
from pretrain.data.batch import Batch, Slots
from pretrain.data.manifest import Shard
from pretrain.data.order import SampleOrder
from pretrain.data.shards import Sample
from pretrain.data.source import Filled, TrainSource
from pretrain.world import World

SHARDS = [17, 9, 23, 4]
ORDER = {"seed": 11, "lanes": 3, "window_shards": 1}
GLOBAL_BATCH = 24
STEPS = 10
RANKS = (1, 2, 3, 4, 6, 8, 12, 24)
RESUME_STEPS = (0, 1, 3, 4, 9)
WORKERS = (1, 3)
ACCUMULATION = {1: 3, 2: 4, 3: 1, 4: 2, 6: 1, 8: 3, 12: 2, 24: 1}
CELLS = list(product(RANKS, RANKS, RESUME_STEPS, WORKERS))


class Bytes:
    """Stands for a `ShardReader` whose every sample can be read."""

    def locate(self, sample_id: int) -> tuple[Shard, int]:
        return Shard("x.tar", 1, 1, "", ""), sample_id

    def read(self, sample_id: int) -> Sample:
        return Sample(data=b"", label=sample_id % 7, key=str(sample_id))


def source_of(order: SampleOrder, rank: int, ranks: int, micro_batch: int, accumulation: int):
    world = World(rank=rank, size=ranks, local_rank=0, local_size=1)
    crop = {"image_size": 1, "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    return TrainSource(
        reader=Bytes(),  # type: ignore[arg-type]
        order=order,
        slots=Slots(1, micro_batch, 1),
        micro_batch=micro_batch,
        accumulation=accumulation,
        world=world,
        **crop,
    )


def rank_batches(rank: int, ranks: int, workers: int, first: int, last: int) -> list[Batch]:
    """What one rank gets for those steps: its workers each know the order by themselves."""
    per_rank = GLOBAL_BATCH // ranks
    accumulation = ACCUMULATION[ranks]
    sources = [
        source_of(
            SampleOrder(SHARDS, **ORDER),
            rank,
            ranks,
            per_rank // accumulation,
            accumulation,
        )
        for _ in range(workers)
    ]
    made: dict[int, Batch] = {}
    # One worker after the other: none may depend on what another has done.
    for worker, source in enumerate(sources):
        for number in range(first * accumulation + worker, last * accumulation, workers):
            assert source[number, 0] == Filled(0, ())
            made[number] = source.slots[0].copied(pinned=False)
    return [made[number] for number in sorted(made)]


@functools.cache
def global_sequence(ranks: int, workers: int, first: int, last: int) -> tuple[list[int], list[int]]:
    """Sample ids and seeds of the steps, in the order of the global batches."""
    by_rank = [rank_batches(rank, ranks, workers, first, last) for rank in range(ranks)]
    assert len({len(batches) for batches in by_rank}) == 1, "ranks get different numbers of batches"
    assert len({len(b.sample_ids) for batches in by_rank for b in batches}) <= 1
    ids, seeds = [
        [torch.cat([getattr(b, field) for b in batches] or [torch.zeros(0)]) for batches in by_rank]
        for field in ("sample_ids", "seeds")
    ]
    per_rank = GLOBAL_BATCH // ranks
    return tuple(
        torch.stack([part.view(-1, per_rank) for part in parts], dim=1).flatten().tolist()
        if last > first
        else []
        for parts in (ids, seeds)
    )


@pytest.fixture(scope="module")
def reference() -> tuple[list[int], list[int]]:
    order = SampleOrder(SHARDS, **ORDER)
    assert order.lanes == 3
    runs = [order.batch(step, GLOBAL_BATCH, 0, GLOBAL_BATCH) for step in range(STEPS)]
    ids, seeds = (
        np.concatenate([getattr(run, f) for run in runs]) for f in ("sample_ids", "seeds")
    )
    return ids.tolist(), seeds.tolist()


@pytest.fixture(autouse=True)
def no_pixels(monkeypatch):
    pixel = torch.zeros((3, 1, 1), dtype=torch.uint8)
    monkeypatch.setattr(source_module, "train_image", lambda *_: pixel)


def test_the_grid_is_large():
    assert len(CELLS) >= 500


@pytest.mark.parametrize(("before", "after"), list(product(RANKS, RANKS)))
def test_stopped_and_resumed_elsewhere_the_sequence_is_the_same(before, after, reference):
    """Ten cells each: where the job stopped, and how many workers it then has."""
    for stop, workers in product(RESUME_STEPS, WORKERS):
        first = global_sequence(before, workers, 0, stop)
        second = global_sequence(after, 4 - workers, stop, STEPS)
        assert (first[0] + second[0], first[1] + second[1]) == reference
        # Four epochs and a bit, whatever their order inside the batches where they meet.
        times_seen = np.bincount(first[0] + second[0], minlength=sum(SHARDS))
        assert set(times_seen.tolist()) <= {4, 5}


def test_a_thousand_ranks_share_an_epoch():
    """1,024 ranks of 2 micro-batches of 2: all batches of two epochs and a bit, rank by rank."""
    ranks, accumulation, micro = 1024, 2, 2
    order = SampleOrder([311] * 30 + [57], seed=3, lanes=8, window_shards=3)
    assert order.lanes == 8
    size = ranks * accumulation * micro
    whole = [order.batch(step, size, 0, size) for step in range(-(-2 * order.samples // size))]
    seen = np.full((len(whole), ranks, accumulation, micro), -1)
    for rank in range(ranks):
        source = source_of(order, rank, ranks, micro, accumulation)
        for number in range(len(whole) * accumulation):
            run = source.samples(number)
            seen[number // accumulation, rank, number % accumulation] = run.sample_ids
    assert np.array_equal(seen.reshape(len(whole), -1), [batch.sample_ids for batch in whole])
    by_position = np.empty(seen.size, dtype=np.int64)
    by_position[np.concatenate([batch.positions for batch in whole])] = seen.reshape(-1)
    epochs = by_position[: 2 * order.samples].reshape(2, -1)
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(order.samples))
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_thousand_ranks_cut_one_step_of_the_full_set():
    shards = [3086] * 4599 + [14_197_122 - 3086 * 4599]
    ranks, micro, step = 1024, 4, 300_000
    order = SampleOrder(shards, seed=5, lanes=64, window_shards=8)
    whole = order.batch(step, ranks * micro, 0, ranks * micro).sample_ids
    sources = [source_of(order, rank, ranks, micro, 1) for rank in range(ranks)]
    parts = [source.samples(step).sample_ids for source in sources]
    assert np.array_equal(np.concatenate(parts), whole)
    # A rank that has just been started agrees with one that has run for long.
    cold = SampleOrder(shards, seed=5, lanes=64, window_shards=8)
    assert np.array_equal(source_of(cold, ranks - 1, ranks, micro, 1).samples(step).sample_ids,
                          whole[-micro:])  # fmt: skip
