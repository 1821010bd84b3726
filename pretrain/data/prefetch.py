"""One process per node that fetches shards before the loaders need them.

It only spares waiting: a loader that finds a shard missing fetches it itself, so nothing depends
on this process, and its errors are left for the loader that runs into them.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from pretrain.data.cache import ShardCache
from pretrain.data.children import forking, serve
from pretrain.errors import DataError

_POLL_SECONDS = 0.2
_TOUCH_SECONDS = 60.0
_PAUSE_AFTER_ERROR_SECONDS = 30.0
_MOST_AHEAD = 4096
_MOST_PAUSED = 8
_NOT_SOON = 2**62


class SharedNumber:
    """A number that one process sets and those forked from it read."""

    def __init__(self, value: int):
        # Without a lock, which a killed process would keep; eight bytes are written at once.
        self._value = multiprocessing.get_context("fork").RawValue("q", value)

    @property
    def value(self) -> int:
        """What was set last."""
        return self._value.value

    @value.setter
    def value(self, value: int) -> None:
        self._value.value = value


class Upcoming:
    """The shards a node reads next; threads and forked processes may ask.

    Args:
        numbers_from: the shard numbers this node reads from a batch on, the soonest first; a
            number may come again. A pure function; only the beginning is looked at.
        batch: number of the batch that the node is at.
    """

    def __init__(self, numbers_from: Callable[[int], Iterable[int]], batch: SharedNumber):
        self._numbers_from = numbers_from
        self._batch = batch
        self._lock = threading.Lock()
        self._known_batch: int | None = None
        self._places: dict[int, int] = {}

    def numbers(self) -> list[int]:
        """Shard numbers from the present batch on, each once, the soonest first."""
        return list(self._now())

    def next_use(self, number: int) -> int:
        """The place of a shard among them; a large number if it is not soon needed."""
        return self._now().get(number, _NOT_SOON)

    def _now(self) -> dict[int, int]:
        with self._lock:
            batch = self._batch.value
            if batch != self._known_batch:
                places: dict[int, int] = {}
                for place, number in enumerate(islice(self._numbers_from(batch), _MOST_AHEAD)):
                    places.setdefault(number, place)
                self._known_batch, self._places = batch, places
            return self._places


class Prefetcher:
    """Fetches ahead in a process of its own, which ends with the process that made it.

    Started by one rank of each node, from its main thread.

    Args:
        cache: where the shards go.
        upcoming: which are needed.
        transfers: shards fetched at a time.
    """

    def __init__(self, cache: ShardCache, upcoming: Upcoming, transfers: int):
        context = multiprocessing.get_context("fork")
        self.process = context.Process(
            target=_run,
            args=(cache, upcoming, transfers, os.getpid()),
            name="shard-prefetch",
            daemon=True,
        )
        with forking():
            self.process.start()

    def close(self) -> None:
        """End the process; what it has fetched in part is continued by whoever needs it."""
        self.process.kill()
        self.process.join()


def _run(cache: ShardCache, upcoming: Upcoming, transfers: int, parent: int) -> None:
    # Unlike a loader process it may end by this: a rank that is told to stop reads little more,
    # and a process that leaves without closing ends it so.
    serve(parent, ends_by=[signal.SIGTERM])
    ahead = _Ahead(cache, transfers)
    while True:
        ahead.turn(upcoming.numbers())


class _Ahead:
    """The transfers under way, and what is not worth trying for now."""

    def __init__(self, cache: ShardCache, transfers: int):
        self._cache = cache
        self._transfers = transfers
        self._pool = ThreadPoolExecutor(transfers)
        self._under_way: dict[Future[bool], int] = {}
        self._not_before: dict[int, float] = {}
        self._touched = 0.0

    def turn(self, numbers: list[int]) -> None:
        """Start what there is a free transfer for, and wait a little for some to end."""
        now = time.monotonic()
        if now - self._touched > _TOUCH_SECONDS:
            self._touched = now
            for number in numbers:
                self._cache.touch(number)
        paused = 0
        for number in numbers:
            if len(self._under_way) >= self._transfers or paused == _MOST_PAUSED:
                break
            if self._not_before.get(number, 0.0) > now:
                paused += 1
                continue
            if number in self._under_way.values() or self._cache.holds(number):
                continue
            fetch = self._pool.submit(self._cache.fetch, number, ahead=True)
            self._under_way[fetch] = number
        if self._under_way:
            wait(self._under_way, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        else:
            time.sleep(_POLL_SECONDS)
        self._collect()

    def _collect(self) -> None:
        for fetch in [fetch for fetch in self._under_way if fetch.done()]:
            number = self._under_way.pop(fetch)
            try:
                # No room yet, or a loader fetches it: soon looked at again.
                pause = 0.0 if fetch.result() else 5 * _POLL_SECONDS
            except DataError:
                pause = _PAUSE_AFTER_ERROR_SECONDS
            self._not_before[number] = time.monotonic() + pause
