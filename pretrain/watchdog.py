"""Ends a rank that no longer moves, after writing down where each of its threads stands."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pretrain.config.guard import WatchdogConfig
from pretrain.errors import EXIT_HUNG

POLL_SECONDS = 0.5
BACKSTOP_SECONDS = 30.0
"""How much later the stacks are written without Python's help, if Python itself hangs."""
_FOREVER_SECONDS = 10.0**8
Result = TypeVar("Result")


class Watchdog:
    """Watches one process, from a thread: each phase of its work has a deadline.

    At the deadline the stacks of all threads are written, and the process ends with
    `pretrain.errors.EXIT_HUNG`: a collective that waits for ever cannot be left otherwise. Where
    not even this thread can run (a C function that keeps Python's lock), `faulthandler` does the
    same from outside Python, half a minute later and with exit code 1. Close it at the end.

    Args:
        stacks_path: the file for the stacks; nothing is written before there is a need.
        settings: deadline of each phase, ``PHASE_seconds``.
        phase: the first phase, which begins now.
    """

    def __init__(self, stacks_path: Path, settings: WatchdogConfig, phase: str) -> None:
        self._path = stacks_path
        self._settings = settings
        self._ended = threading.Event()
        stacks_path.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = stacks_path.open("a", encoding="utf-8")
        self.enter(phase)
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
        self._stacks.close()
        if self._path.stat().st_size == 0:
            self._path.unlink()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            phase, deadline = self._state
            left = deadline - time.monotonic()
            if left <= 0:
                self._give_up(phase)
            faulthandler.dump_traceback_later(
                min(left + BACKSTOP_SECONDS, _FOREVER_SECONDS), exit=True, file=self._stacks
            )

    def _give_up(self, phase: str) -> None:
        line = f"hung: {phase} took more than {self._seconds(phase):g} s; stacks: {self._path}"
        self._stacks.write(line + "\n")
        self._stacks.flush()
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        os.fsync(self._stacks.fileno())
        os.write(sys.stderr.fileno(), (line + "\n").encode())
        os._exit(EXIT_HUNG)
