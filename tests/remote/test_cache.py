"""A node's cache: one downloader, what goes and when, and the bound on its bytes."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from servers import Fault, Proxy, config_of, manifest_of

from pretrain.config.schema import DataConfig
from pretrain.data import cache_space, remote
from pretrain.data.cache import ShardCache, bytes_of, check_cache
from pretrain.data.manifest import check_shards, index_path
from pretrain.data.shards import ShardReader, read_index
from pretrain.errors import DataError

GIB = 2**30
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.05)


def cache_of(data: DataConfig, next_use=None, split: str = "train") -> ShardCache:
    return ShardCache(manifest_of(data), split, data, next_use)


def reader_of(cache: ShardCache) -> ShardReader:
    return ShardReader(cache.root, cache.shards, 3, cache)


def bound_to(data: DataConfig, cache: ShardCache, shards: int) -> DataConfig:
    """The config with room for that many of the largest shards."""
    most = max(bytes_of(shard) for shard in cache.shards)
    return data.model_copy(update={"cache_gib": most * shards / GIB})


def tars(cache: ShardCache) -> list[int]:
    """Numbers of the shards that are there."""
    return [n for n in range(len(cache.shards)) if cache.holds(n)]


def requests_of(proxy: Proxy, cache: ShardCache, number: int) -> list[str | None]:
    return [asked for asked, _ in proxy.requests[cache.shards[number].file]]


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


def test_the_set_reads_as_it_does_from_its_directory(data, published):
    manifest = manifest_of(data)
    local = ShardReader(published / "set", manifest.split("train").shards, 3)
    reader = reader_of(cache_of(data))
    for sample_id in range(manifest.split("train").samples):
        assert reader.read(sample_id) == local.read(sample_id)
    assert manifest.location == data.path
    check_shards(manifest, "train")


def test_a_second_process_finds_what_the_first_fetched(data, proxy):
    cache = cache_of(data)
    assert not cache.holds(0)
    assert cache.fetch(0)
    assert cache_of(data).fetch(0)
    assert requests_of(proxy, cache, 0) == [None]
    names = sorted(path.name for path in cache.root.iterdir())
    shard = cache.shards[0]
    assert names == sorted([shard.file, index_path(cache.root, shard).name])


def fetch_in_process(cache: ShardCache, number: int):
    process = FORK.Process(target=cache.fetch, args=(number,))
    process.start()
    return process


def wait_until(condition, seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_many_processes_make_one_download(data, proxy):
    cache = cache_of(data)
    name = cache.shards[0].file
    proxy.faults[name] = [Fault("slow")]
    processes = [fetch_in_process(cache, 0) for _ in range(4)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(proxy.requests[name]) == 1
    assert len(proxy.requests[index_path(cache.root, cache.shards[0]).name]) == 1


def test_a_killed_downloader_is_succeeded_and_continued(data, proxy):
    cache = cache_of(data)
    name = cache.shards[0].file
    proxy.faults[name] = [Fault("wait", 20_000)]
    first = fetch_in_process(cache, 0)
    partial = cache.root / f"{name}.{cache.shards[0].bytes}.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_size == 20_000)
    second = fetch_in_process(cache, 0)
    time.sleep(0.2)
    assert second.is_alive()
    os.kill(first.pid, signal.SIGKILL)
    second.join(20)
    assert second.exitcode == 0
    assert requests_of(proxy, cache, 0) == [None, "bytes=20000-"]
    assert cache.holds(0)


def test_a_stuck_downloader_is_not_waited_for_for_ever(data, monkeypatch):
    monkeypatch.setattr(remote.Patience, "total_seconds", lambda self, size: 0.3)
    cache = cache_of(data)
    with (cache.root / f"{cache.shards[0].file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"another process of this node .* for 1 s; end the"):
            cache.fetch(0)
        assert not cache.fetch(0, ahead=True)


def test_a_stuck_accountant_is_not_waited_for_for_ever(data, monkeypatch):
    monkeypatch.setattr(cache_space, "_SPACE_LOCK_SECONDS", 0.3)
    cache = cache_of(data)
    with (cache.root.parent / "space.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"space.lock: held by another process"):
            cache.fetch(0)


def test_a_fork_after_fetching_fetches_too(data):
    cache = cache_of(data)
    assert cache.fetch(0)
    process = fetch_in_process(cache, 1)
    process.join(20)
    assert process.exitcode == 0
    assert tars(cache) == [0, 1]


def test_a_fork_of_a_process_that_uses_fsspec_fetches_through_fsspec(published, tmp_path):
    from fsspec import asyn

    asyn.sync(asyn.get_loop(), _nothing)  # its thread runs now, and is not forked
    cache = cache_of(config_of(f"file://{published}/set", tmp_path / "cache"))
    process = fetch_in_process(cache, 0)
    process.join(20)
    assert process.exitcode == 0
    assert cache.holds(0)


async def _nothing() -> None:
    pass


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


def test_equal_names_in_other_folders_and_on_other_hosts_do_not_meet(
    data, proxy, nginx_port, published
):
    changed = published / "changed"
    shutil.copytree(published / "set", changed, dirs_exist_ok=True)
    urls = [data.path, data.path.replace("/set", "/changed"), f"http://localhost:{nginx_port}/set"]
    caches = [cache_of(data.model_copy(update={"path": url})) for url in urls]
    for cache in caches:
        cache.fetch(0)
    assert len({cache.root for cache in caches}) == 3
    assert len(list(caches[0].root.parent.rglob(caches[0].shards[0].file))) == 3


def test_a_changed_manifest_never_meets_old_files(data, published, tmp_path):
    from dataclasses import replace

    from pretrain.data.manifest import read_manifest, write_manifest

    folder = published / "republished"
    shutil.copytree(published / "set", folder, dirs_exist_ok=True)
    data = data.model_copy(update={"path": data.path.replace("/set", "/republished")})
    before = cache_of(data)
    write_manifest(replace(read_manifest(folder), edition="another"), folder)
    assert cache_of(data).root != before.root


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


def fetch_all(cache: ShardCache, numbers) -> None:
    for number in numbers:
        cache.fetch(number)


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


def test_somebody_elses_directory_is_refused(data, tmp_path):
    top = tmp_path / "cache" / f"swin-pretrain-cache-{os.getuid()}"
    top.mkdir(parents=True)
    top.chmod(0o777)
    with pytest.raises(DataError, match="other users may write to it; run: chmod go-w"):
        cache_of(data)
    top.rmdir()
    top.symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"is not a directory of yours; give data.cache_dir=DIR"):
        cache_of(data)
    with pytest.raises(DataError, match="cannot be made"):
        cache_of(data.model_copy(update={"cache_dir": "/proc/nowhere"}))


def test_indices_come_without_their_shards(data, proxy):
    cache = cache_of(data)
    cache.fetch_indices()
    labels = [read_index(cache.root, shard)["label"] for shard in cache.shards]
    assert sum(map(len, labels)) == 36
    assert tars(cache) == []
    assert not any(name.endswith(".tar") for name in proxy.requests)
    proxy.always[index_path(cache.root, cache.shards[2]).name] = Fault("status", 404)
    index_path(cache.root, cache.shards[2]).unlink()
    with pytest.raises(DataError, match=r"000002.idx: 404"):
        cache.fetch_indices()


def test_a_missing_shard_is_one_line(data, proxy):
    manifest = manifest_of(data)
    name = manifest.split("train").shards[0].file
    proxy.always[name] = Fault("status", 404)
    with pytest.raises(DataError, match=rf"{data.path}/{name}: 404 Not Found; check data.path"):
        check_shards(manifest, "train")
    cache = cache_of(data)
    with pytest.raises(DataError, match=rf"{name}: 404 Not Found"):
        reader_of(cache).read(0)
