"""Which sample comes when: a pure function of the shard sizes and the seed.

Each epoch permutes the shards and lays them end to end. That line is cut into *lanes* of equal
length, and the positions of the stream are dealt to the lanes in turn. A lane is read in *windows*
of a few shards' worth of samples, each permuted within itself. A global batch is put in the order
of its lanes before it is cut into the ranks' parts, so that a rank always reads the same few lanes:
what it reads from is a few shards at a time, whatever the size of the set, and no two nodes read
the same shards but at the edges of lanes.

Nothing is held per sample and nothing is replayed: any position of the endless stream is computed
from its number. Neither the number of ranks nor of loader processes enters. That is the whole data
state of a run: samples consumed = step · global batch.

Shards are permuted by raw Philox4x64 output (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011) put in order by a stable sort; numpy guarantees the raw stream across versions,
which it does not for ``Generator.permutation``. Windows are permuted by a Feistel network on two
mixed-radix digits with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains",
CT-RSA 2002), which needs no memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError

Int64Array = NDArray[np.int64]
_UInt64Array = NDArray[np.uint64]

NEVER = 2**62
"""In place of a position: not before the end of the next epoch."""
_CACHED_EPOCHS = 2
_FEISTEL_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND = np.uint64(0xD1B54A32D192ED03)
"""Another odd number: were it a small multiple of the first, rounds would repeat each other."""


@dataclass(frozen=True)
class Run:
    """Samples at positions of the stream.

    Attributes:
        positions: int64 [count], in the endless stream.
        sample_ids: int64 [count], index of each sample in manifest order, shard after shard.
        seeds: int64 [count], non-negative; the only source of a sample's randomness.
        epochs: int64 [count], the epoch each position lies in.
    """

    positions: Int64Array
    sample_ids: Int64Array
    seeds: Int64Array
    epochs: Int64Array


@dataclass(frozen=True)
class _Epoch:
    """One epoch's line of shards: their numbers, and where on the line each begins (one more)."""

    shards: Int64Array
    starts: Int64Array


@dataclass(frozen=True)
class _Windows:
    """Every window of an epoch: its lane, and where in the lane it begins and ends."""

    lanes: Int64Array
    starts: Int64Array
    ends: Int64Array


class SampleOrder:
    """The endless stream of samples: epoch after epoch, each sample once per epoch.

    Args:
        shard_samples: samples of each shard, in manifest order.
        seed: the run's seed, 0 or more.
        lanes: lanes wanted; fewer where a lane would be shorter than a window.
        window_shards: average shards' worth of samples that are permuted among each other; as many
            as there are shards, or more, makes every epoch one uniform permutation.

    Attributes:
        samples: of an epoch.
        lanes: lanes there are.

    Raises:
        DataError: no samples, or a count that is not positive.
    """

    def __init__(self, shard_samples: Sequence[int], *, seed: int, lanes: int, window_shards: int):
        if not shard_samples or min(shard_samples) < 1:
            raise DataError(f"sample order: expected shards with samples, got {shard_samples!r}")
        if seed < 0 or lanes < 1 or window_shards < 1:
            raise DataError(
                "sample order: expected seed >= 0, lanes > 0, window_shards > 0, got "
                f"{seed}, {lanes}, {window_shards}"
            )
        self._counts = np.asarray(shard_samples, dtype=np.int64)
        self._first_ids = np.cumsum(self._counts) - self._counts
        self._seed = seed
        self._epochs: dict[int, _Epoch] = {}
        self.samples = int(self._counts.sum())
        self.lanes = max(1, min(lanes, len(self._counts) // window_shards))
        self._window_samples = min(
            self.samples, -(-self.samples * window_shards // len(self._counts))
        )

    def at(self, positions: Int64Array) -> Run:
        """The samples at positions of the stream, in any order.

        The epoch of a position is ``position // samples``.

        Raises:
            DataError: a negative position.
        """
        if len(positions) and positions.min() < 0:
            raise DataError(f"sample order: expected positions >= 0, got {positions.min()}")
        epochs, offsets = np.divmod(positions, self.samples)
        indices, lanes = np.divmod(offsets, self.lanes)
        lines = self._lane_starts(lanes) + self._permuted(epochs, lanes, indices)
        ids = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            line = self._epoch(epoch)
            chosen = epochs == epoch
            place = np.searchsorted(line.starts, lines[chosen], side="right") - 1
            ids[chosen] = self._first_ids[line.shards[place]] + lines[chosen] - line.starts[place]
        return Run(positions, ids, sample_seeds(self._seed, epochs, ids), epochs)

    def batch(self, step: int, global_batch: int, first: int, count: int) -> Run:
        """Part of a global batch, which holds the positions from ``step · global_batch`` on.

        Args:
            step: 0-based.
            global_batch: samples of every step.
            first: where in the batch, which is in the order of its lanes, the part begins.
            count: samples of the part.
        """
        positions = np.arange(step * global_batch, (step + 1) * global_batch, dtype=np.int64)
        lanes = (positions % self.samples % self.lanes).astype(np.int32)
        return self.at(positions[np.argsort(lanes, kind="stable")[first : first + count]])

    def candidates(self, position: int, sample_id: int, count: int) -> Iterator[int]:
        """Ids of a position's sample and, should it be bad, of those that follow it in its lane.

        Args:
            position: in the stream.
            sample_id: what is there; the others are only computed when asked for.
            count: ids in all.
        """
        yield sample_id
        following = position + self.lanes * np.arange(1, count, dtype=np.int64)
        yield from self.at(following).sample_ids.tolist()

    def lanes_of(self, first: int, stop: int, global_batch: int) -> tuple[int, int]:
        """First lane and end of the lanes that entries ``first`` to ``stop - 1`` of batches read.

        Exact where the lanes divide the global batch; else a lane or more too many.
        """
        margin = 0
        if global_batch % self.lanes:
            margin = 1 + self.lanes**2 // (4 * global_batch)
        low = first * self.lanes // global_batch - margin
        high = -(-stop * self.lanes // global_batch) + margin
        return max(0, low), min(self.lanes, high)

    def next_uses(self, position: int, lanes: tuple[int, int]) -> Int64Array:
        """When those lanes next read of each shard: int64 [shards], positions of the stream.

        The position itself for a shard that is being read, `NEVER` for one that is not read before
        the end of the next epoch.
        """
        uses = np.full(len(self._counts), NEVER, dtype=np.int64)
        first_epoch = position // self.samples
        windows = self._windows
        for epoch in (first_epoch, first_epoch + 1):
            begin = epoch * self.samples + windows.lanes
            last = begin + (windows.ends - 1) * self.lanes
            wanted = (windows.lanes >= lanes[0]) & (windows.lanes < lanes[1]) & (last >= position)
            window, shard = self._shards_of_windows(epoch, np.flatnonzero(wanted))
            first = begin[window] + windows.starts[window] * self.lanes
            np.minimum.at(uses, shard, np.maximum(first, position))
        return uses

    def most_shards_in_play(self, lanes: tuple[int, int]) -> int:
        """Bound on the shards that those lanes read from at one time, whatever the epoch."""
        smallest = np.sort(self._counts)
        reach = np.searchsorted(np.cumsum(smallest), self._window_samples, side="left")
        # A window may begin in the middle of one shard and end in that of another.
        return min(len(self._counts), (lanes[1] - lanes[0]) * (int(reach) + 2))

    def _lane_starts(self, lanes: Int64Array) -> Int64Array:
        """Where on the line each lane begins."""
        return lanes * (self.samples // self.lanes) + np.minimum(lanes, self.samples % self.lanes)

    def _window_bounds(
        self, lanes: Int64Array, indices: Int64Array
    ) -> tuple[Int64Array, Int64Array]:
        """Begin and end, in its lane, of the window that each index lies in."""
        size = self._window_samples
        ends = self.samples // self.lanes + (lanes < self.samples % self.lanes)
        # Lanes change their windows one after another, not all at once.
        early = lanes * size // self.lanes * (size < ends)
        starts = (indices + early) // size * size - early
        return np.maximum(starts, 0), np.minimum(starts + size, ends)

    def _permuted(self, epochs: Int64Array, lanes: Int64Array, indices: Int64Array) -> Int64Array:
        """Permute indices in a lane within their windows."""
        starts, ends = self._window_bounds(lanes, indices)
        keys = _hash(self._seed, epochs, lanes, starts)
        return starts + _permute(indices - starts, ends - starts, keys)

    @cached_property
    def _windows(self) -> _Windows:
        parts: list[tuple[Int64Array, Int64Array, Int64Array]] = []
        for lane in range(self.lanes):
            length = self.samples // self.lanes + (lane < self.samples % self.lanes)
            indices = np.arange(0, length + self._window_samples, self._window_samples)
            indices = np.minimum(indices, length - 1)
            lanes = np.full(len(indices), lane, dtype=np.int64)
            starts, ends = self._window_bounds(lanes, indices)
            starts, chosen = np.unique(starts, return_index=True)
            parts.append((lanes[chosen], starts, ends[chosen]))
        return _Windows(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))

    def _shards_of_windows(self, epoch: int, chosen: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Every pair of a window among the chosen and a shard that it has samples of."""
        windows, line = self._windows, self._epoch(epoch)
        begin = self._lane_starts(windows.lanes[chosen])
        low = np.searchsorted(line.starts, begin + windows.starts[chosen], side="right") - 1
        high = np.searchsorted(line.starts, begin + windows.ends[chosen], side="left")
        counts = high - low
        window = np.repeat(chosen, counts)
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - low, counts)
        return window, line.shards[place]

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) >= _CACHED_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            philox = np.random.Philox(key=[self._seed, epoch])
            shards = np.argsort(philox.random_raw(len(self._counts)), kind="stable")
            starts = np.zeros(len(shards) + 1, dtype=np.int64)
            np.cumsum(self._counts[shards], out=starts[1:])
            self._epochs[epoch] = _Epoch(shards.astype(np.int64, copy=False), starts)
        return self._epochs[epoch]


def sample_seeds(seed: int, epochs: Int64Array, sample_ids: Int64Array) -> Int64Array:
    """Hash of run seed, epoch and sample id: int64 [count], non-negative."""
    return (_hash(seed, epochs, sample_ids) >> np.uint64(1)).astype(np.int64)


def _hash(seed: int, *columns: Int64Array) -> _UInt64Array:
    """Hash of the seed and of each row of the columns: uint64 [count].

    Each input passes through the finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014) before the next is added.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.full(len(columns[0]), seed, dtype=np.uint64) + _GOLDEN)
        for column in columns:
            state = _mix(state + column.astype(np.uint64) * _GOLDEN)
    return state


def _mix(state: _UInt64Array) -> _UInt64Array:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _permute(indices: Int64Array, lengths: Int64Array, keys: _UInt64Array) -> Int64Array:
    """Send each index below its length to another: for equal lengths and keys, a permutation."""
    columns = np.ceil(np.sqrt(lengths)).astype(np.uint64)
    rows = (lengths.astype(np.uint64) + columns - np.uint64(1)) // columns
    result = indices.astype(np.uint64)
    walking = np.arange(len(indices))
    # What lands beyond the length walks on; the network permutes rows · columns numbers.
    while len(walking):
        result[walking] = _feistel(result[walking], rows[walking], columns[walking], keys[walking])
        walking = walking[result[walking] >= lengths[walking].astype(np.uint64)]
    return result.astype(np.int64)


def _feistel(
    numbers: _UInt64Array, rows: _UInt64Array, columns: _UInt64Array, keys: _UInt64Array
) -> _UInt64Array:
    row, column = np.divmod(numbers, columns)
    with np.errstate(over="ignore"):
        for _ in range(_FEISTEL_ROUNDS):
            keys = keys + _ROUND
            row = (row + _mix(keys + column * _GOLDEN) % rows) % rows
            keys = keys + _ROUND
            column = (column + _mix(keys + row * _GOLDEN) % columns) % columns
    return row * columns + column
