"""Which sample comes when: a pure function of the shard sizes and the seed.

Shards are cut into blocks of consecutive samples. Each epoch permutes the blocks of the whole
split, and then permutes the samples inside windows of consecutive blocks. So reads stay local (a
window touches a bounded number of blocks), nothing is held per sample, and any position of the
endless stream can be computed without those before it. Neither the number of ranks nor of loader
processes enters. That is the whole data state of a run: samples consumed = step · global batch.

All randomness is raw Philox4x64 output (Salmon et al., "Parallel random numbers: as easy as 1, 2,
3", SC 2011) put in order by a stable sort; numpy guarantees the raw stream across versions, which
it does not for ``Generator.permutation``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError

Int64Array = NDArray[np.int64]

_BLOCKS, _WINDOW = 0, 1
_CACHED_EPOCHS, _CACHED_WINDOWS = 2, 4


@dataclass(frozen=True)
class Run:
    """Consecutive positions of the stream.

    Attributes:
        sample_ids: int64 [count], index of each sample in manifest order, shard after shard.
        seeds: int64 [count], non-negative; the only source of a sample's randomness.
        epochs: int64 [count], the epoch each position lies in.
    """

    sample_ids: Int64Array
    seeds: Int64Array
    epochs: Int64Array


@dataclass(frozen=True)
class _Epoch:
    """One epoch's blocks in order: first sample id of each, and position of each (one more)."""

    first_ids: Int64Array
    starts: Int64Array


class SampleOrder:
    """The endless stream of samples: epoch after epoch, each sample once per epoch.

    Args:
        shard_samples: samples of each shard, in manifest order.
        seed: the run's seed, 0 or more.
        block_samples: consecutive samples of a shard that stay together in a window.
        window_blocks: blocks whose samples are permuted among each other.

    Raises:
        DataError: no samples, or a count that is not positive.
    """

    def __init__(
        self, shard_samples: Sequence[int], *, seed: int, block_samples: int, window_blocks: int
    ):
        if not shard_samples or min(shard_samples) < 1:
            raise DataError(f"sample order: expected shards with samples, got {shard_samples!r}")
        if seed < 0 or block_samples < 1 or window_blocks < 1:
            raise DataError(
                "sample order: expected seed >= 0, block_samples > 0, window_blocks > 0, got "
                f"{seed}, {block_samples}, {window_blocks}"
            )
        counts = np.asarray(shard_samples, dtype=np.int64)
        self.samples = int(counts.sum())
        self._seed = seed
        self._window_blocks = window_blocks
        self._first_ids, self._sizes = _cut_blocks(counts, block_samples)
        self._epochs: dict[int, _Epoch] = {}
        self._windows: dict[tuple[int, int], Int64Array] = {}

    def at(self, first_position: int, count: int) -> Run:
        """The samples at positions ``first_position`` to ``first_position + count - 1``.

        The epoch of a position is ``position // samples``; a run may straddle epochs.

        Raises:
            DataError: a negative position or count.
        """
        if first_position < 0 or count < 0:
            raise DataError(
                f"sample order: expected position and count >= 0, got {first_position}, {count}"
            )
        ids = np.empty(count, dtype=np.int64)
        epochs = np.arange(first_position, first_position + count, dtype=np.int64) // self.samples
        done = 0
        while done < count:
            epoch, offset = divmod(first_position + done, self.samples)
            taken = min(count - done, self.samples - offset)
            self._fill(ids[done : done + taken], epoch, offset)
            done += taken
        return Run(sample_ids=ids, seeds=sample_seeds(self._seed, epochs, ids), epochs=epochs)

    def _fill(self, ids: Int64Array, epoch: int, offset: int) -> None:
        """Write the samples of one epoch from ``offset`` on into ``ids``."""
        starts = self._epoch(epoch).starts
        done = 0
        while done < len(ids):
            block = int(np.searchsorted(starts, offset + done, side="right")) - 1
            window = block // self._window_blocks
            begin = offset + done - int(starts[window * self._window_blocks])
            part = self._window(epoch, window)[begin : begin + len(ids) - done]
            ids[done : done + len(part)] = part
            done += len(part)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) >= _CACHED_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            order = self._permutation(epoch, _BLOCKS, 0, len(self._sizes))
            starts = np.zeros(len(order) + 1, dtype=np.int64)
            np.cumsum(self._sizes[order], out=starts[1:])
            self._epochs[epoch] = _Epoch(first_ids=self._first_ids[order], starts=starts)
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int) -> Int64Array:
        """The sample ids of a window, permuted."""
        if (epoch, window) not in self._windows:
            while len(self._windows) >= _CACHED_WINDOWS:
                del self._windows[next(iter(self._windows))]
            blocks = self._epoch(epoch)
            first = window * self._window_blocks
            last = min(first + self._window_blocks, len(blocks.first_ids))
            starts = blocks.starts[first : last + 1]
            positions = np.arange(starts[0], starts[-1], dtype=np.int64)
            shift = np.repeat(blocks.first_ids[first:last] - starts[:-1], np.diff(starts))
            order = self._permutation(epoch, _WINDOW, window, len(positions))
            self._windows[epoch, window] = (positions + shift)[order]
        return self._windows[epoch, window]

    def _permutation(self, epoch: int, kind: int, index: int, length: int) -> Int64Array:
        # Philox counts in the lowest of four words, so the others separate the streams.
        philox = np.random.Philox(key=[self._seed, epoch], counter=[0, index, kind, 0])
        return np.argsort(philox.random_raw(length), kind="stable").astype(np.int64, copy=False)


def sample_seeds(seed: int, epochs: Int64Array, sample_ids: Int64Array) -> Int64Array:
    """Hash of run seed, epoch and sample id: int64 [count], non-negative.

    Each input passes through the finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014) before the next is added.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        state = _mix(np.full(len(epochs), seed, dtype=np.uint64) + golden)
        state = _mix(state + epochs.astype(np.uint64) * golden)
        state = _mix(state + sample_ids.astype(np.uint64) * golden)
    return (state >> np.uint64(1)).astype(np.int64)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _cut_blocks(counts: Int64Array, block_samples: int) -> tuple[Int64Array, Int64Array]:
    """First sample id and size of every block; a shard's last block may be short."""
    blocks_of_shard = -(-counts // block_samples)
    shard = np.repeat(np.arange(len(counts)), blocks_of_shard)
    first_block = np.cumsum(blocks_of_shard) - blocks_of_shard
    offset = (np.arange(len(shard)) - first_block[shard]) * block_samples
    first_sample = np.cumsum(counts) - counts
    return first_sample[shard] + offset, np.minimum(counts[shard] - offset, block_samples)
