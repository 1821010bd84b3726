"""A node's cache: one downloader, and whose files are met in it."""

import fcntl
import os
import shutil
import signal
import time

import pytest
from caches import cache_of, fetch_in_process, reader_of, requests_of, tars, wait_until
from servers import Fault, config_of, manifest_of

from pretrain.data import cache_space, remote
from pretrain.data.manifest import check_shards, index_path
from pretrain.data.shards import ShardReader, read_index
from pretrain.errors import DataError


async def _nothing() -> None:
    pass


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
