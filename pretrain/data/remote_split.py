"""What a rank needs to read a split of a remote set: its node's cache, and who fills it."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate

import numpy as np

from pretrain.config.schema import DataConfig
from pretrain.data.cache import ShardCache, bytes_of, check_cache
from pretrain.data.manifest import Manifest
from pretrain.data.order import NEVER, SampleOrder
from pretrain.data.prefetch import Prefetcher, SharedNumber, Upcoming
from pretrain.world import World


class RemoteSplit:
    """A split of a remote set on this node; each rank makes one, from its main thread.

    The rank with local rank 0 fetches ahead for all. Ranks of a node are neighbours in number.

    Args:
        manifest: of a remote set.
        split_name: one of its splits.
        data: the section of the config.
        world: this rank's place.
        numbers_from: the shard numbers this node, all its ranks together, reads from a batch on
            (see `Upcoming`).
        shards_in_play: most shards that this node reads at a time; the cache must hold them all.
        first_batch: number of the batch that is read first.

    Attributes:
        cache: for the `ShardReader`.

    Raises:
        DataError: the cache cannot be made, or is too small for what is in play.
    """

    def __init__(
        self,
        manifest: Manifest,
        split_name: str,
        data: DataConfig,
        world: World,
        *,
        numbers_from: Callable[[int], Iterable[int]],
        shards_in_play: int,
        first_batch: int,
    ):
        sizes = sorted(map(bytes_of, manifest.split(split_name).shards), reverse=True)
        what = f"the {min(shards_in_play, len(sizes))} shards that a node reads at a time"
        check_cache(data, sum(sizes[:shards_in_play]), what)
        self._batch = SharedNumber(first_batch)
        upcoming = Upcoming(numbers_from, self._batch)
        self.cache = ShardCache(manifest, split_name, data, upcoming.next_use)
        self._prefetcher: Prefetcher | None = None
        if world.local_rank == 0:
            self._prefetcher = Prefetcher(self.cache, upcoming, data.remote_transfers)

    def advance(self) -> None:
        """Say that this rank has read a batch."""
        self._batch.value += 1

    def close(self) -> None:
        """Fetch no more; the cache stays."""
        if self._prefetcher is not None:
            self._prefetcher.close()


def remote_train_split(
    manifest: Manifest,
    data: DataConfig,
    order: SampleOrder,
    world: World,
    micro_batch: int,
    accumulation: int,
    first_step: int,
) -> RemoteSplit | None:
    """The training split in its order, batches being micro-batches; None for a local set."""
    if manifest.url is None:
        return None
    per_rank = micro_batch * accumulation
    global_batch = per_rank * world.size
    node = (world.rank - world.local_rank) * per_rank
    lanes = order.lanes_of(node, node + world.local_size * per_rank, global_batch)

    def numbers_from(batch: int) -> list[int]:
        uses = order.next_uses(batch // accumulation * global_batch, lanes)
        soonest = np.argsort(uses, kind="stable")
        return soonest[uses[soonest] < NEVER].tolist()

    return RemoteSplit(
        manifest,
        data.train_split,
        data,
        world,
        numbers_from=numbers_from,
        shards_in_play=order.most_shards_in_play(lanes),
        first_batch=first_step * accumulation,
    )


def remote_eval_split(
    manifest: Manifest, split_name: str, data: DataConfig, world: World, batch_size: int
) -> RemoteSplit | None:
    """A split in manifest order, dealt to the ranks batch by batch; None for a local set."""
    if manifest.url is None:
        return None
    samples = [shard.samples for shard in manifest.split(split_name).shards]
    ends = list(accumulate(samples))
    under_way = (data.workers_per_rank * data.prefetch_batches + 1) * world.size * batch_size

    def numbers_from(batch: int) -> Iterable[int]:
        first = (batch * world.size + world.rank - world.local_rank) * batch_size
        return range(bisect_right(ends, first), len(ends))

    return RemoteSplit(
        manifest,
        split_name,
        data,
        world,
        numbers_from=numbers_from,
        shards_in_play=under_way // min(samples) + 2,
        first_batch=0,
    )
