import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.manifest import INDEX_RECORD_BYTES
from pretrain.data.order import NEVER, Run, SampleOrder, sample_seeds
from pretrain.errors import DataError

counts = st.lists(st.integers(1, 40), min_size=1, max_size=12)
sizes = st.integers(1, 20)
FULL_SIZE = [3086] * 4599 + [14_197_122 - 3086 * 4599]
"""ImageNet-22K in shards of about 330 MB."""


def order_of(shards, seed=0, lanes=4, window=2) -> SampleOrder:
    return SampleOrder(shards, seed=seed, lanes=lanes, window_shards=window)


def stream(order: SampleOrder, first: int, count: int) -> Run:
    return order.at(np.arange(first, first + count))


@given(counts, st.integers(0, 2**31), sizes, sizes, st.integers(0, 5))
def test_every_epoch_has_every_sample_once(shards, seed, lanes, window, epoch):
    order = order_of(shards, seed, lanes, window)
    run = stream(order, epoch * order.samples, order.samples)
    assert sorted(run.sample_ids.tolist()) == list(range(sum(shards)))
    assert set(run.epochs.tolist()) == {epoch}


@given(counts, sizes, sizes, st.lists(st.integers(0, 500), max_size=30))
def test_any_positions_can_be_asked_for_in_any_order(shards, lanes, window, positions):
    order = order_of(shards, 1, lanes, window)
    run = order.at(np.array(positions, dtype=np.int64))
    assert run.positions.tolist() == positions
    for i, position in enumerate(positions):
        alone = stream(order_of(shards, 1, lanes, window), position, 1)
        for field in ("sample_ids", "seeds", "epochs"):
            assert getattr(run, field)[i] == getattr(alone, field)[0]


@given(counts, sizes, sizes, st.integers(1, 60), st.integers(0, 30))
def test_a_batch_is_its_positions_in_the_order_of_lanes(shards, lanes, window, size, step):
    order = order_of(shards, 2, lanes, window)
    batch = order.batch(step, size, 0, size)
    assert sorted(batch.positions.tolist()) == list(range(step * size, (step + 1) * size))
    lane_of = batch.positions % order.samples % order.lanes
    assert (np.diff(lane_of) >= 0).all()
    assert batch.sample_ids.tolist() == order.at(batch.positions).sample_ids.tolist()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(0, 30))
def test_ranks_together_see_the_global_batch(ranks, accumulation, micro, step):
    order = order_of([13, 7, 22], window=1)
    size = ranks * accumulation * micro
    seen = [
        sample
        for part in range(ranks * accumulation)
        for sample in order.batch(step, size, part * micro, micro).sample_ids.tolist()
    ]
    assert seen == order.batch(step, size, 0, size).sample_ids.tolist()


def test_runs_straddle_epochs_without_dropping_or_padding():
    order = order_of([10, 5])
    assert stream(order, 12, 8).epochs.tolist() == [0] * 3 + [1] * 5
    assert np.bincount(stream(order, 0, 15 * 7).sample_ids).tolist() == [7] * 15
    batches = [order.batch(step, 4, 0, 4).sample_ids for step in range(15)]
    assert np.bincount(np.concatenate(batches)).tolist() == [4] * 15


def test_epochs_and_seeds_differ():
    order = order_of([400])
    first, second = stream(order, 0, 400), stream(order, 400, 400)
    assert first.sample_ids.tolist() != second.sample_ids.tolist()
    assert first.sample_ids.tolist() != stream(order_of([400], seed=1), 0, 400).sample_ids.tolist()
    assert len({*first.seeds.tolist(), *second.seeds.tolist()}) == 800


def test_the_order_is_pinned():
    """Other numbers here would make every saved run resume on other images."""
    order = order_of([6, 3, 5, 4, 7], seed=7, lanes=2, window=1)
    assert order.lanes == 2
    assert stream(order, 20, 10).sample_ids.tolist() == [14, 4, 16, 3, 15, 14, 21, 16, 20, 17]
    assert order.batch(3, 6, 0, 6).sample_ids.tolist() == [8, 14, 16, 5, 4, 3]
    assert stream(order, 20, 2).seeds.tolist() == [7618003418642711087, 571841173440777107]


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


@pytest.mark.parametrize(("side", "epochs"), [(37, 8000), (1000, 500)])
def test_one_window_over_everything_is_an_even_permutation(side, epochs):
    """Each sample at each place equally often, and each pair of neighbours too."""
    order = order_of([side], lanes=1, window=1)
    ids = stream(order, 0, side * epochs).sample_ids.reshape(epochs, side)
    places = np.stack([np.bincount(ids[:, place], minlength=side) for place in range(side)])
    pairs = np.bincount((ids[:, :-1] * side + ids[:, 1:]).ravel(), minlength=side**2)
    pairs = pairs.reshape(side, side)[~np.eye(side, dtype=bool)]
    for found, freedom in ((places, (side - 1) ** 2), (pairs, side * (side - 1) - 1)):
        expected = epochs / side
        chi_squared = ((found - expected) ** 2 / expected).sum()
        assert abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5


def test_lanes_are_read_window_by_window():
    """Two lanes of 25 shards in windows of 5: what a lane reads from stays that small."""
    order = order_of([64] * 50, lanes=2, window=5)
    shards = stream(order, 0, order.samples).sample_ids // 64
    first_lane = shards[0::2].reshape(5, 5 * 64)
    for window in first_lane:
        assert len(np.unique(window)) == 5
    assert len(np.unique(first_lane)) == 25
    assert not set(first_lane.ravel().tolist()) & set(shards[1::2].tolist())


def test_lanes_change_their_windows_one_after_another():
    order = order_of([64] * 160, lanes=4, window=10)
    shards = stream(order, 0, order.samples).sample_ids // 64
    changes = []
    for lane in range(4):
        own = shards[lane::4]
        begins = [int(np.flatnonzero(own == shard)[0]) for shard in np.unique(own)]
        # Ten shards begin together, but for the ends of lanes.
        changes.append({begin // 64 for begin in begins if 64 < begin < 30 * 64})
    assert len(set.union(*changes)) > len(changes[0])


def test_neighbours_in_the_stream_are_mixed():
    ids = stream(order_of([1000] * 10, lanes=1, window=10), 0, 5000).sample_ids
    assert (np.abs(np.diff(ids)) == 1).mean() < 0.01


def test_small_sets_have_one_lane():
    assert order_of([100] * 7, lanes=64, window=8).lanes == 1
    assert order_of([100] * 300, lanes=64, window=8).lanes == 37
    assert order_of([100] * 5000, lanes=64, window=8).lanes == 64


def test_a_cold_start_in_a_full_size_set():
    """14.2 million samples in 4,600 shards: any step alone, the same as with all before it."""
    step, size = 200_000, 4096
    tracemalloc.start()
    order = SampleOrder(FULL_SIZE, seed=5, lanes=64, window_shards=8)
    cold = order.batch(step, size, 0, size)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 * 2**20
    assert order.samples == 14_197_122
    assert set(cold.epochs.tolist()) == {step * size // 14_197_122}
    warm = SampleOrder(FULL_SIZE, seed=5, lanes=64, window_shards=8)
    warm.batch(step - 1, size, 0, size)
    assert warm.batch(step, size, 0, size).sample_ids.tolist() == cold.sample_ids.tolist()


def test_a_full_size_epoch_has_every_sample_once():
    order = SampleOrder(FULL_SIZE, seed=5, lanes=64, window_shards=8)
    seen = np.zeros(order.samples, dtype=bool)
    for first in range(0, order.samples, 1 << 20):
        count = min(1 << 20, order.samples - first)
        seen[stream(order, 3 * order.samples + first, count).sample_ids] = True
    assert seen.all()


@pytest.mark.parametrize("nodes", [1, 8, 128])
def test_a_node_of_a_full_size_job_reads_few_shards(nodes):
    """At any time a few hundred on all nodes together; in an epoch each node its part."""
    order = SampleOrder(FULL_SIZE, seed=5, lanes=64, window_shards=8)
    size = 4096
    share = size // nodes
    lanes = order.lanes_of(0, share, size)
    in_play = [
        int((order.next_uses(position, lanes) == position).sum())
        for position in range(0, order.samples, order.samples // 20)
    ]
    assert max(in_play) <= order.most_shards_in_play(lanes)
    assert max(in_play) * max(FULL_SIZE) * INDEX_RECORD_BYTES < 100e6
    steps = range(0, order.samples // size, 5)
    ids = np.concatenate([order.batch(step, size, 0, share).sample_ids for step in steps])
    touched = len(np.unique(np.searchsorted(np.cumsum(FULL_SIZE), ids, side="right")))
    assert touched <= len(FULL_SIZE) * (lanes[1] - lanes[0]) / order.lanes + 2 * lanes[1]


@given(counts, sizes, sizes, st.integers(0, 300), st.data())
def test_next_uses_are_those_of_the_stream(shards, lanes, window, position, data):
    """Against the samples themselves: no shard is read earlier than said, nor long after."""
    order = order_of(shards, 3, lanes, window)
    first = data.draw(st.integers(0, order.lanes - 1))
    stop = data.draw(st.integers(first + 1, order.lanes))
    uses = order.next_uses(position, (first, stop))
    end = (position // order.samples + 2) * order.samples
    run = stream(order, position, end - position)
    lane_of = run.positions % order.samples % order.lanes
    mine = (lane_of >= first) & (lane_of < stop)
    shard_of = np.searchsorted(np.cumsum(shards), run.sample_ids, side="right")
    for shard in range(len(shards)):
        found = run.positions[mine & (shard_of == shard)]
        if len(found):
            assert position <= uses[shard] <= found[0]
        elif uses[shard] != NEVER:
            # Its window is being read, but its own samples have all come.
            assert uses[shard] == position
    soon = (uses > position) & (uses < NEVER)
    assert set(uses[soon].tolist()) <= set(run.positions[mine].tolist())


@given(counts, sizes, st.integers(1, 60), st.integers(0, 20), st.data())
def test_lanes_of_a_part_of_the_batch_are_enough(shards, lanes, size, step, data):
    order = order_of(shards, 3, lanes, 1)
    first = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(first + 1, size))
    low, high = order.lanes_of(first, stop, size)
    positions = order.batch(step, size, first, stop - first).positions
    epochs = set((positions // order.samples).tolist())
    lane_of = positions % order.samples % order.lanes
    if len(epochs) == 1 and positions.max() - positions.min() < size and _whole(order, step, size):
        assert low <= lane_of.min()
        assert lane_of.max() < high


def _whole(order: SampleOrder, step: int, size: int) -> bool:
    """Whether no epoch ends in the batch."""
    return step * size // order.samples == ((step + 1) * size - 1) // order.samples


def test_candidates_follow_in_the_lane():
    order = order_of([20] * 12, lanes=3, window=2)
    run = stream(order, 0, 90)
    found = list(order.candidates(7, int(run.sample_ids[7]), 5))
    assert found == run.sample_ids[7:22:3].tolist()


@settings(max_examples=20)
@given(st.integers(0, 10**15))
def test_far_positions_work(position):
    run = stream(order_of([5, 9]), position, 20)
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
    with pytest.raises(DataError, match="positions"):
        stream(order_of([3]), -1, 2)
