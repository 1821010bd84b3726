import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.order import SampleOrder, sample_seeds
from pretrain.errors import DataError

counts = st.lists(st.integers(1, 40), min_size=1, max_size=12)
sizes = st.integers(1, 20)


def order_of(shards, seed=0, block=4, window=3) -> SampleOrder:
    return SampleOrder(shards, seed=seed, block_samples=block, window_blocks=window)


@given(counts, st.integers(0, 2**31), sizes, sizes, st.integers(0, 5))
def test_every_epoch_has_every_sample_once(shards, seed, block, window, epoch):
    order = order_of(shards, seed, block, window)
    run = order.at(epoch * order.samples, order.samples)
    assert sorted(run.sample_ids.tolist()) == list(range(sum(shards)))
    assert set(run.epochs.tolist()) == {epoch}


@given(counts, sizes, sizes, st.integers(0, 500), st.lists(st.integers(0, 90), max_size=8))
def test_any_cut_of_the_stream_gives_the_same_samples(shards, block, window, first, lengths):
    whole = order_of(shards, 1, block, window).at(first, sum(lengths))
    cold = [order_of(shards, 1, block, window) for _ in lengths]
    starts = np.cumsum([first, *lengths])[:-1].tolist()
    parts = [o.at(s, n) for o, s, n in zip(cold, starts, lengths, strict=True)]
    for field in ("sample_ids", "seeds", "epochs"):
        joined = [value for part in parts for value in getattr(part, field).tolist()]
        assert joined == getattr(whole, field).tolist()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(0, 30))
def test_ranks_together_see_the_global_batch(ranks, accumulation, micro, step):
    order = order_of([13, 7, 22])
    batch = ranks * accumulation * micro
    seen = [
        sample
        for rank in range(ranks)
        for j in range(accumulation)
        for sample in order.at(
            step * batch + (rank * accumulation + j) * micro, micro
        ).sample_ids.tolist()
    ]
    assert seen == order.at(step * batch, batch).sample_ids.tolist()


def test_runs_straddle_epochs_without_dropping_or_padding():
    order = order_of([10, 5])
    run = order.at(12, 8)
    assert run.epochs.tolist() == [0] * 3 + [1] * 5
    assert len(order.at(0, 15 * 7).sample_ids) == 105
    assert np.bincount(order.at(0, 105).sample_ids).tolist() == [7] * 15


def test_epochs_and_seeds_differ():
    order = order_of([400])
    first, second = order.at(0, 400), order.at(400, 400)
    assert first.sample_ids.tolist() != second.sample_ids.tolist()
    assert first.sample_ids.tolist() != order_of([400], seed=1).at(0, 400).sample_ids.tolist()
    assert len({*first.seeds.tolist(), *second.seeds.tolist()}) == 800


def test_the_order_is_pinned():
    """Other numbers here would make every saved run resume on other images."""
    run = order_of([6, 3, 5], seed=7).at(10, 8)
    assert run.sample_ids.tolist() == [0, 1, 3, 7, 5, 4, 12, 6]
    assert run.seeds.tolist()[:2] == [606638864729456088, 8763691920644887605]


def test_seeds_depend_on_each_input_and_nothing_else():
    epochs, ids = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    seeds = sample_seeds(3, epochs, ids)
    assert seeds.dtype == np.int64
    assert (seeds >= 0).all()
    assert len(set(seeds.tolist())) == 4
    assert sample_seeds(3, epochs[::-1], ids[::-1]).tolist() == seeds[::-1].tolist()
    assert not set(seeds.tolist()) & set(sample_seeds(4, epochs, ids).tolist())


def test_seeds_are_even():
    seeds = sample_seeds(0, np.zeros(100_000, np.int64), np.arange(100_000))
    for bit in range(63):
        share = ((seeds >> bit) & 1).mean()
        assert 0.49 < share < 0.51, bit


def test_samples_stay_inside_windows_of_blocks():
    """A window of the stream holds exactly the samples of its blocks: reads stay local."""
    order = SampleOrder([64] * 50, seed=0, block_samples=16, window_blocks=5)
    ids = order.at(0, order.samples).sample_ids
    for window in ids.reshape(-1, 80):
        assert len(np.unique(window // 16)) == 5
    assert len(np.unique(ids[:80] // 64)) > 1


def test_neighbours_in_the_stream_are_mixed():
    ids = SampleOrder([1000] * 10, seed=0, block_samples=64, window_blocks=32).at(0, 5000)
    assert (np.abs(np.diff(ids.sample_ids)) == 1).mean() < 0.01


def test_a_cold_start_in_a_full_size_set():
    """14.2 million samples in 4,600 shards: any step alone, the same as with all before it."""
    shards = [3086] * 4599 + [14_197_122 - 3086 * 4599]
    step, batch = 200_000, 4096
    tracemalloc.start()
    order = SampleOrder(shards, seed=5, block_samples=64, window_blocks=1024)
    cold = order.at(step * batch, batch)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 40 * 2**20
    assert order.samples == 14_197_122
    assert set(cold.epochs.tolist()) == {step * batch // 14_197_122}
    warm = SampleOrder(shards, seed=5, block_samples=64, window_blocks=1024)
    warm.at((step - 1) * batch, batch)
    assert warm.at(step * batch, batch).sample_ids.tolist() == cold.sample_ids.tolist()


@pytest.mark.slow
def test_a_full_size_epoch_has_every_sample_once():
    shards = [3086] * 4599 + [14_197_122 - 3086 * 4599]
    order = SampleOrder(shards, seed=5, block_samples=64, window_blocks=1024)
    seen = np.zeros(order.samples, dtype=bool)
    for first in range(0, order.samples, 1 << 20):
        count = min(1 << 20, order.samples - first)
        seen[order.at(3 * order.samples + first, count).sample_ids] = True
    assert seen.all()


@settings(max_examples=20)
@given(st.integers(0, 10**15))
def test_far_positions_work(position):
    order = order_of([5, 9])
    run = order.at(position, 20)
    assert ((run.sample_ids >= 0) & (run.sample_ids < 14)).all()
    assert run.epochs[0] == position // 14


@pytest.mark.parametrize("shards", [[], [3, 0], [-1]])
def test_empty_shards_are_refused(shards):
    with pytest.raises(DataError, match="expected shards with samples"):
        order_of(shards)


@pytest.mark.parametrize("arguments", [(-1, 4, 3), (0, 0, 3), (0, 4, 0)])
def test_senseless_settings_are_refused(arguments):
    with pytest.raises(DataError, match="sample order"):
        order_of([3], *arguments)


def test_negative_positions_are_refused():
    with pytest.raises(DataError, match="position"):
        order_of([3]).at(-1, 2)
