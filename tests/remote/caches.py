"""Caches of the small published set, and what is in them."""

import multiprocessing
import time

from servers import Proxy, manifest_of

from pretrain.config.schema import DataConfig
from pretrain.data.cache import ShardCache
from pretrain.data.shards import ShardReader

FORK = multiprocessing.get_context("fork")


def cache_of(data: DataConfig, next_use=None, split: str = "train") -> ShardCache:
    return ShardCache(manifest_of(data), split, data, next_use)


def reader_of(cache: ShardCache) -> ShardReader:
    return ShardReader(cache.root, cache.shards, 3, cache)


def tars(cache: ShardCache) -> list[int]:
    """Numbers of the shards that are there."""
    return [n for n in range(len(cache.shards)) if cache.holds(n)]


def requests_of(proxy: Proxy, cache: ShardCache, number: int) -> list[str | None]:
    return [asked for asked, _ in proxy.requests[cache.shards[number].file]]


def fetch_in_process(cache: ShardCache, number: int):
    process = FORK.Process(target=cache.fetch, args=(number,))
    process.start()
    return process


def wait_until(condition, seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)
