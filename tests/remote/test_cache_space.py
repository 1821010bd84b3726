"""What goes from a node's cache and when, and the bound on its bytes."""

import contextlib
import errno
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from caches import FORK, cache_of, fetch_in_process, reader_of, requests_of, tars, wait_until
from servers import Fault, config_of

from pretrain.config.schema import DataConfig
from pretrain.data import cache_space, remote
from pretrain.data.cache import ShardCache, bytes_of, check_cache
from pretrain.data.manifest import index_path
from pretrain.errors import DataError

GIB = 2**30


def bound_to(data: DataConfig, cache: ShardCache, shards: int) -> DataConfig:
    """The config with room for that many of the largest shards."""
    most = max(bytes_of(shard) for shard in cache.shards)
    return data.model_copy(update={"cache_gib": most * shards / GIB})


class Watch:
    """Notes the most bytes a cache ever took, as the file system sees it."""

    def __init__(self, top: Path):
        self.top = top
        self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            total = 0
            for path in self.top.rglob("*"):
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat().st_size if path.is_file() else 0
            self.most = max(self.most, total)


def fetch_all(cache: ShardCache, numbers) -> None:
    for number in numbers:
        cache.fetch(number)


def test_what_is_needed_last_goes_first(data):
    order = [3, 0, 2, 1, 4]
    cache = cache_of(data)
    cache = cache_of(bound_to(data, cache, 3), order.index)
    for number in order[:3]:
        cache.fetch(number)
    assert tars(cache) == [0, 2, 3]
    cache.fetch(1)  # needed now: the last of those there goes for it
    assert tars(cache) == [0, 1, 3]
    assert not cache.fetch(4, ahead=True)  # needed later than all there are
    assert cache.fetch(2, ahead=True)  # sooner than 1
    assert tars(cache) == [0, 2, 3]


def test_without_a_known_future_the_idlest_goes_first(data):
    cache = cache_of(data)
    cache = cache_of(bound_to(data, cache, 3))
    for number in (0, 1, 2):
        cache.fetch(number)
        age = time.time() - 100 + number
        for path in (cache.root / cache.shards[number].file,):
            os.utime(path, (age, age))
            os.utime(index_path(cache.root, cache.shards[number]), (age, age))
    cache.touch(0)
    cache.fetch(3)
    assert tars(cache) == [0, 2, 3]


def test_idle_files_of_others_go_first_and_busy_ones_last(data, published, tmp_path):
    shutil.copytree(published / "set", published / "other", dirs_exist_ok=True)
    theirs = cache_of(data.model_copy(update={"path": data.path.replace("/set", "/other")}))
    theirs.fetch(0)
    theirs.fetch(1)
    for path in theirs.root.glob("*"):
        if theirs.shards[0].file.removesuffix(".tar") in path.name:
            os.utime(path, (0, 0))
    ours = cache_of(bound_to(data, theirs, 3), lambda number: number)
    ours.fetch(0)
    ours.fetch(1)
    assert tars(theirs) == [1]
    ours.fetch(2)
    assert tars(theirs) == [1]
    assert tars(ours) == [0, 2]


def test_the_bound_holds_at_every_moment(data, proxy):
    cache = cache_of(data)
    data = bound_to(data, cache, 3)
    cache = cache_of(data, lambda number: number)
    numbers = range(len(cache.shards))
    for number in numbers:
        proxy.faults[cache.shards[number].file] = [Fault("slow"), Fault("short", 9_000)] * 3
    top = cache.root.parent
    with Watch(top) as watch:
        processes = [FORK.Process(target=fetch_all, args=(cache, numbers[k::2])) for k in (0, 1)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
    limit = int(data.cache_gib * GIB)
    assert limit / 3 < watch.most <= limit + 4096  # the locks hold entity tags
    assert sum(group.bytes for group in cache_space.groups(top)) <= limit


def test_an_open_shard_that_goes_frees_its_bytes_and_is_fetched_again(data, proxy):
    cache = cache_of(data)
    cache = cache_of(bound_to(data, cache, 1))
    reader = reader_of(cache)
    first = reader.read(0)
    opened = reader._open[0].file
    assert os.fstat(opened).st_size == cache.shards[0].bytes
    cache.fetch(1)
    assert os.fstat(opened).st_size == 0
    assert os.fstat(opened).st_nlink == 0
    assert reader.read(0) == first
    assert os.fstat(reader._open[0].file).st_nlink == 1
    assert requests_of(proxy, cache, 0) == [None, None]


def test_a_shard_that_goes_again_and_again_is_an_error(data, monkeypatch):
    cache = cache_of(data)
    reader = reader_of(cache)
    fetch = cache.fetch

    def fetch_and_lose(number: int) -> None:
        fetch(number)
        (cache.root / cache.shards[number].file).unlink()

    monkeypatch.setattr(cache, "fetch", fetch_and_lose)
    with pytest.raises(DataError, match=r"had to go from the cache 3 times .* data.cache_gib"):
        reader.read(0)


def test_orphaned_partials_count_and_go(data, proxy):
    cache = cache_of(data)
    cache = cache_of(bound_to(data, cache, 1))
    shard = cache.shards[0]
    partial = cache.root / f"{shard.file}.{shard.bytes}.partial"
    partial.write_bytes(b"x" * 1000)
    (cache.root / f"{shard.file}.lock").write_text("tag")
    cache.fetch(1)
    assert not partial.exists()
    assert not (cache.root / f"{shard.file}.lock").exists()


def test_a_shard_that_is_being_fetched_does_not_go(data, proxy, monkeypatch):
    cache = cache_of(data)
    data = bound_to(data, cache, 1)
    proxy.faults[cache.shards[0].file] = [Fault("wait", 1000)]
    first = fetch_in_process(cache_of(data), 0)
    partial = cache.root / f"{cache.shards[0].file}.{cache.shards[0].bytes}.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_size == 1000)
    second = fetch_in_process(cache_of(data), 1)
    time.sleep(0.3)
    assert second.is_alive()  # waits for room
    proxy.released.set()
    first.join(20)
    second.join(20)
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert tars(cache) == [1]


def test_nothing_but_shards_of_the_cache_ever_goes(data, tmp_path):
    cache = cache_of(data)
    top = cache.root.parent
    bystanders = [tmp_path / "cache" / "mine.tar", top / "mine.tar", top / "mine" / "mine.tar"]
    for path in bystanders:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100_000)
        os.utime(path, (0, 0))
    cache = cache_of(bound_to(data, cache, 1))
    cache.fetch(0)
    cache.fetch(1)
    assert all(path.stat().st_size == 100_000 for path in bystanders)


def test_a_cache_that_is_too_small_is_refused_before_anything_is_fetched(data, proxy):
    data = data.model_copy(update={"cache_gib": 1e-5})
    with pytest.raises(DataError, match=r"data.cache_gib: 1e-05 GiB are too few for its largest"):
        cache_of(data)
    with pytest.raises(DataError, match=r"too few for 8 nodes: 20 GiB; give data.cache_gib=24"):
        check_cache(data, 20 * GIB, "8 nodes")
    with pytest.raises(DataError, match=r"are free on this disk, too few for all: 2.*data.cache_d"):
        check_cache(data.model_copy(update={"cache_gib": 1e9}), 2**58, "all")
    assert not any(name.endswith(".tar") for name in proxy.requests)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_costs_what_is_needed_last_and_then_is_an_error(data, monkeypatch, code):
    cache = cache_of(data, lambda number: -number)
    cache.fetch(0)
    cache.fetch(1)
    real, failures = os.pwrite, [2]

    def full(*arguments):
        if failures[0]:
            failures[0] -= 1
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(remote.os, "pwrite", full)
    cache.fetch(2)  # two files had to go
    assert tars(cache) == [2]
    failures[0] = 10**6
    with pytest.raises(DataError, match=r"no space for .*free on the disk.*give data.cache_dir"):
        cache.fetch(3)
    assert not list(cache.root.glob("*.partial"))


def test_a_real_full_disk(published, proxy, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    monkeypatch.setattr(cache_space, "DISK_KEPT_FREE_BYTES", 0)
    try:
        data = config_of(f"http://127.0.0.1:{proxy.port}/set", disk)
        cache = cache_of(data, lambda number: number)
        fetch_all(cache, range(len(cache.shards)))
        assert len(tars(cache)) < len(cache.shards)
        filler = disk / "filler"
        cache_space.remove(cache_space.groups(cache.root.parent)[0])
        for group in cache_space.groups(cache.root.parent):
            cache_space.remove(group)
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(b"x" * 10**6)
        with pytest.raises(DataError, match=r"no space for|free on this disk"):
            cache_of(data, lambda number: number).fetch(0)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
