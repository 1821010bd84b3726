"""Ends a rank that no longer moves, after writing down where each of its threads stands."""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pretrain.config.guard import WatchdogConfig
from pretrain.errors import EXIT_HUNG
from pretrain.files import replace_text

POLL_SECONDS = 0.5
BACKSTOP_SECONDS = 30.0
"""How much later the stacks are written without Python's help, if Python itself hangs."""
LINGER_SECONDS = 5.0
"""Between writing its stacks and leaving: the first rank that leaves takes the others with it."""
HEARTBEAT_SECONDS = 30.0
"""Between two signs of life of a node; sooner where deadlines are shorter."""
STACKS_SIGNAL = signal.SIGUSR1
"""At which a rank writes its stacks and goes on."""
STOOD_STILL = "stopped, the whole process stood still"
"""What a process that was stopped for most of its time says when it is woken to be ended."""
_FOREVER_SECONDS = 10.0**8
Result = TypeVar("Result")


class Watchdog:
    """Watches one process, from a thread: each phase of its work has a deadline.

    At the deadline the stacks of all threads are written; some seconds later, in which the other
    ranks write theirs, the process ends with `pretrain.errors.EXIT_HUNG`: a collective that waits
    for ever cannot be left otherwise. Where not even this thread can run (a C function that keeps
    Python's lock), `faulthandler` does the same from outside Python, half a minute later and with
    exit code 1. At `STACKS_SIGNAL` stacks are written at any time. Close it at the end.

    Args:
        stacks_path: the file for the stacks; nothing is written before there is a need.
        settings: deadline of each phase, ``PHASE_seconds``.
        phase: the first phase, which begins now.
        heartbeat_path: renewed with the phase for as long as this process lives and moves, for
            whoever must notice that it is stopped or its machine gone; None writes none.
    """

    def __init__(
        self,
        stacks_path: Path,
        settings: WatchdogConfig,
        phase: str,
        heartbeat_path: Path | None = None,
    ) -> None:
        self._path = stacks_path
        self._settings = settings
        self._heartbeat_path = heartbeat_path
        self._heartbeat = ("", 0.0)
        self._ended = threading.Event()
        stacks_path.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = stacks_path.open("a", encoding="utf-8")
        faulthandler.register(STACKS_SIGNAL, file=self._stacks, all_threads=True)
        self.enter(phase)
        self._beat()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def enter(self, phase: str) -> None:
        """Begin a phase, or the same one again; its deadline counts from now."""
        self._state = (phase, time.monotonic() + self._seconds(phase))

    def _seconds(self, phase: str) -> float:
        return getattr(self._settings, f"{phase}_seconds")

    def alive_at(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """The function; each call shows that the phase under way moves."""

        def called(*arguments: object) -> Result:
            self.enter(self._state[0])
            return function(*arguments)

        return called

    def close(self) -> None:
        """Watch no more. A file that holds no stacks goes; again does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(STACKS_SIGNAL)
        signal.signal(STACKS_SIGNAL, signal.SIG_IGN)
        self._stacks.close()
        if self._path.stat().st_size == 0:
            self._path.unlink()

    def _watch(self) -> None:
        while True:
            slept_at = time.monotonic()
            if self._ended.wait(POLL_SECONDS):
                return
            still_seconds = time.monotonic() - slept_at - POLL_SECONDS
            phase, deadline = self._state
            left = deadline - time.monotonic()
            if left <= 0:
                self._give_up(phase, still_seconds)
            faulthandler.dump_traceback_later(
                min(left + BACKSTOP_SECONDS, _FOREVER_SECONDS), exit=True, file=self._stacks
            )
            self._beat()

    def _beat(self) -> None:
        phase, _ = self._state
        before, when = self._heartbeat
        due = time.monotonic() - when >= min(HEARTBEAT_SECONDS, self._seconds(phase) / 4)
        known = before == phase or (before in _QUICK and phase in _QUICK)
        if self._heartbeat_path is None or (known and not due):
            return
        self._heartbeat = (phase, time.monotonic())
        beat = {"phase": phase, "time": time.time(), "seconds": self._seconds(phase)}
        # A disk that takes no more ends nothing here.
        with contextlib.suppress(OSError):
            replace_text(self._heartbeat_path, json.dumps(beat) + "\n")

    def _give_up(self, phase: str, still_seconds: float) -> None:
        seconds = self._seconds(phase)
        stopped = f" ({STOOD_STILL} for {still_seconds:.1f} s)"
        told = stopped if still_seconds > seconds / 2 else ""
        line = f"hung: {phase} took more than {seconds:g} s{told}; stacks: {self._path}"
        self._stacks.write(line + "\n")
        self._stacks.flush()
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        os.fsync(self._stacks.fileno())
        os.write(sys.stderr.fileno(), (line + "\n").encode())
        faulthandler.dump_traceback_later(
            LINGER_SECONDS + BACKSTOP_SECONDS, exit=True, file=self._stacks
        )
        time.sleep(LINGER_SECONDS)
        os._exit(EXIT_HUNG)


_QUICK = ("data", "step")
"""Phases that take turns all the time: a change of these is no news."""
