"""One process per node that fetches shards before the loaders need them.

It only spares waiting: a loader that finds a shard missing fetches it itself, so nothing depends
on this process, and its errors are left for the loader that runs into them.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from multiprocessing.sharedctypes import Synchronized

from pretrain.config.schema import DataConfig
from pretrain.data.cache import ShardCache, bytes_of, check_cache
from pretrain.data.manifest import Manifest
from pretrain.errors import DataError

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.2
_TOUCH_SECONDS = 60.0
_PAUSE_AFTER_ERROR_SECONDS = 30.0
_MOST_AHEAD = 4096
_MOST_PAUSED = 8
_NOT_SOON = 2**62


class SharedStep:
    """The step a node has reached: set by one of its ranks, read by processes forked from it."""

    def __init__(self, step: int):
        self._value: Synchronized[int] = multiprocessing.get_context("fork").Value("q", step)

    @property
    def step(self) -> int:
        """The step that was set last."""
        return self._value.value

    @step.setter
    def step(self, step: int) -> None:
        self._value.value = step


class Upcoming:
    """The shards a node reads next; threads and forked processes may ask.

    Args:
        numbers_from: the shard numbers this node reads from a step on, the soonest first; a
            number may come again. A pure function; only the beginning is looked at.
        step: where the node is.
    """

    def __init__(self, numbers_from: Callable[[int], Iterable[int]], step: SharedStep):
        self._numbers_from = numbers_from
        self._step = step
        self._lock = threading.Lock()
        self._known_step: int | None = None
        self._places: dict[int, int] = {}

    def numbers(self) -> list[int]:
        """Shard numbers from the present step on, each once, the soonest first."""
        return list(self._now())

    def next_use(self, number: int) -> int:
        """The place of a shard among them; a large number if it is not soon needed."""
        return self._now().get(number, _NOT_SOON)

    def _now(self) -> dict[int, int]:
        with self._lock:
            step = self._step.step
            if step != self._known_step:
                places: dict[int, int] = {}
                for place, number in enumerate(islice(self._numbers_from(step), _MOST_AHEAD)):
                    places.setdefault(number, place)
                self._known_step, self._places = step, places
            return self._places


class RemoteSplit:
    """What a rank needs to read a split of a remote set: its node's cache, and who fills it.

    Every rank of a node makes one, from its main thread; that of local rank 0 fetches ahead.

    Args:
        manifest: of a remote set.
        split_name: one of its splits.
        data: the section of the config.
        numbers_from: the shard numbers this node, all its ranks together, reads from a step on
            (see `Upcoming`).
        in_play: shard numbers that this node reads at a time; the cache must hold them all.
        first_step: where the reading begins.
        fetches_ahead: whether this is the rank that does.

    Raises:
        DataError: the cache cannot be made, or is too small for what is in play.
    """

    def __init__(
        self,
        manifest: Manifest,
        split_name: str,
        data: DataConfig,
        *,
        numbers_from: Callable[[int], Iterable[int]],
        in_play: Iterable[int],
        first_step: int,
        fetches_ahead: bool,
    ):
        shards = manifest.split(split_name).shards
        numbers = set(in_play)
        needed_bytes = sum(bytes_of(shards[number]) for number in numbers)
        check_cache(data, needed_bytes, f"the {len(numbers)} shards a node reads at a time")
        self._step = SharedStep(first_step)
        upcoming = Upcoming(numbers_from, self._step)
        self.cache = ShardCache(manifest, split_name, data, upcoming.next_use)
        self._prefetcher: Prefetcher | None = None
        if fetches_ahead:
            self._prefetcher = Prefetcher(self.cache, upcoming, data.remote_transfers)

    def reach(self, step: int) -> None:
        """Say which step this rank reads now."""
        self._step.step = step

    def close(self) -> None:
        """Fetch no more; the cache stays."""
        if self._prefetcher is not None:
            self._prefetcher.close()


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
        # Until the child has no more of this process's handlers, which would swallow the signal
        # by which a process that leaves without closing ends it, and wait for ever.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    def close(self) -> None:
        """End the process; what it has fetched in part is continued by whoever needs it."""
        self.process.kill()
        self.process.join()


def _run(cache: ShardCache, upcoming: Upcoming, transfers: int, parent: int) -> None:
    # Unlike a loader process it may end by this: a rank that is told to stop reads little more.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for number in (signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
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
