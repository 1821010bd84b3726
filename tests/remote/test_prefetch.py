"""The process that fetches ahead: what, when, how far, and that nothing depends on it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from servers import Fault, config_of, manifest_of

from pretrain.config.schema import DataConfig
from pretrain.data.cache import ShardCache, bytes_of
from pretrain.data.manifest import read_manifest
from pretrain.data.order import SampleOrder
from pretrain.data.prefetch import Prefetcher, SharedNumber, Upcoming
from pretrain.data.remote_split import RemoteSplit, remote_eval_split, remote_train_split
from pretrain.errors import DataError
from pretrain.world import World


class Node:
    """A cache with room for some shards, which are read in order, one a step."""

    def __init__(self, data, room: int, transfers: int = 2):
        self.manifest = manifest_of(data)
        shards = self.manifest.split("train").shards
        most = max(map(bytes_of, shards))
        data = data.model_copy(update={"cache_gib": room * most / 2**30})
        self.step = SharedNumber(0)
        self.upcoming = Upcoming(lambda step: range(step, len(shards)), self.step)
        self.cache = ShardCache(self.manifest, "train", data, self.upcoming.next_use)
        self.prefetcher = Prefetcher(self.cache, self.upcoming, transfers)

    def there(self) -> list[int]:
        return [n for n in range(len(self.cache.shards)) if self.cache.holds(n)]

    def wait_for(self, numbers: list[int], seconds: float = 30.0) -> None:
        give_up = time.monotonic() + seconds
        while self.there() != numbers:
            assert time.monotonic() < give_up, self.there()
            time.sleep(0.05)


@pytest.fixture
def node(data):
    nodes = []

    def make(**settings) -> Node:
        nodes.append(Node(data, **settings))
        return nodes[-1]

    yield make
    for one in nodes:
        one.prefetcher.close()


def test_the_future_is_a_function_of_the_step():
    step = SharedNumber(5)
    upcoming = Upcoming(lambda now: iter([now, now + 2, now, now + 1]), step)
    assert upcoming.numbers() == [5, 7, 6]
    assert upcoming.next_use(5) < upcoming.next_use(7) < upcoming.next_use(6)
    step.value = 7
    assert upcoming.numbers() == [7, 9, 8]
    assert upcoming.next_use(5) == upcoming.next_use(6) > 1000


def test_it_runs_ahead_as_far_as_there_is_room_and_follows_the_step(node):
    one = node(room=3)
    one.wait_for([0, 1, 2])
    time.sleep(1.5)
    assert one.there() == [0, 1, 2]  # what is needed sooner does not go
    one.step.value = 2
    one.wait_for([2, 3, 4])
    assert one.prefetcher.process.is_alive()


def test_a_loader_that_comes_too_early_waits_for_the_transfer(node, proxy):
    proxy.faults["small-train-000000.tar"] = [Fault("slow")]
    one = node(room=3)
    assert one.cache.fetch(0)
    one.wait_for([0, 1, 2])
    assert len(proxy.requests[one.cache.shards[0].file]) == 1


def test_nothing_depends_on_it(node):
    one = node(room=3)
    os.kill(one.prefetcher.process.pid, signal.SIGKILL)
    for number in range(len(one.cache.shards)):
        one.step.value = number
        assert one.cache.fetch(number)


def test_its_errors_are_left_to_whoever_needs_the_shard(node, proxy, published):
    proxy.always["small-train-000001.tar"] = Fault("status", 404)
    one = node(room=4)
    one.wait_for([0, 2, 3])  # the index of 1 came, and takes its place
    assert one.prefetcher.process.is_alive()


def test_ctrl_c_does_not_end_it_but_closing_does(node):
    one = node(room=3)
    one.wait_for([0, 1, 2])
    for number in (signal.SIGUSR2, signal.SIGINT):
        os.kill(one.prefetcher.process.pid, number)
    time.sleep(0.3)
    assert one.prefetcher.process.is_alive()
    one.prefetcher.close()
    assert not one.prefetcher.process.is_alive()


PROGRAM = """
import os, signal, sys
sys.path[:0] = {path!r}
from pretrain.config.schema import DataConfig
from pretrain.data.manifest import read_manifest
from pretrain.data.remote_split import RemoteSplit
from pretrain.world import World
data = DataConfig(path={url!r}, cache_dir={cache!r})
manifest = read_manifest(data.path, cache_dir=data.cache_dir)
signal.signal(signal.SIGTERM, lambda *_: None)  # as a rank does
split = RemoteSplit(manifest, "train", data, World(), numbers_from=lambda batch: [],
                    shards_in_play=1, first_batch=0)
print(split._prefetcher.process.pid, flush=True)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("os.kill(os.getpid(), signal.SIGKILL)", -9), ("raise SystemExit(5)", 5)],
)
def test_it_ends_with_its_rank_however_that_ends(data, end, code):
    program = PROGRAM.format(path=sys.path, url=data.path, cache=data.cache_dir) + end
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == code, answer.stderr
    give_up = time.monotonic() + 10
    while Path(f"/proc/{int(answer.stdout)}").exists():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_one_rank_of_a_node_fetches_what_its_lanes_read(data):
    manifest = manifest_of(data)
    counts = [shard.samples for shard in manifest.split("train").shards]
    order = SampleOrder(counts, seed=0, lanes=4, window_shards=1)
    worlds = [World(rank, 4, rank % 2, 2) for rank in range(4)]
    splits = [remote_train_split(manifest, data, order, world, 3, 1, 0) for world in worlds[2:]]
    lanes = order.lanes_of(6, 12, 12)
    wanted = np.flatnonzero(order.next_uses(0, lanes) < 12).tolist()
    assert 0 < len(wanted) < len(counts)
    try:
        give_up = time.monotonic() + 30
        while not all(map(splits[1].cache.holds, wanted)):
            assert time.monotonic() < give_up
            time.sleep(0.05)
    finally:
        for split in splits:
            split.close()


def test_evaluation_is_fetched_in_the_order_of_the_manifest(data):
    manifest = manifest_of(data)
    split = remote_eval_split(manifest, "validation", data, World(), 4)
    try:
        give_up = time.monotonic() + 30
        while not all(map(split.cache.holds, range(len(split.cache.shards)))):
            assert time.monotonic() < give_up
            time.sleep(0.05)
        ends = np.cumsum([shard.samples for shard in split.cache.shards])
        for batch in range(3):
            at = int(np.searchsorted(ends, 4 * batch, side="right"))
            uses = [split.cache._next_use(number) for number in range(len(ends))]
            assert np.argsort(uses, kind="stable")[0] == at
            split.advance()
    finally:
        split.close()


def test_a_local_set_needs_none_of_this(published):
    manifest = read_manifest(published / "set")
    config = DataConfig(path=str(published / "set"))
    assert remote_eval_split(manifest, "train", config, World(), 4) is None


def test_a_cache_smaller_than_what_is_in_play_is_refused(data):
    manifest = manifest_of(data)
    most = max(map(bytes_of, manifest.split("train").shards))
    small = data.model_copy(update={"cache_gib": 2 * most / 2**30})
    with pytest.raises(DataError, match=r"too few for the 4 shards that a node reads at a time: "):
        RemoteSplit(
            manifest,
            "train",
            small,
            World(),
            numbers_from=lambda batch: [],
            shards_in_play=4,
            first_batch=0,
        )


def test_a_set_behind_a_command_is_fetched_ahead_too(published, tmp_path):
    data = config_of(f"pipe:cat {published}/set/{{file}}", tmp_path / "cache", allow_pipe=True)
    one = Node(data, room=3)
    try:
        one.wait_for([0, 1, 2])
    finally:
        one.prefetcher.close()
