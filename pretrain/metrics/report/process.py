"""The report written by a process of its own: again and again beside training, and at the end.

``python -m pretrain.metrics report RUN`` reads files and imports no torch, so a step waits for
nothing but the start of a process, and whatever goes wrong there ends nothing here.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from pretrain.run_directory import RunDirectory

FIRST_SECONDS = 60.0
"""A run of minutes has a report before its first interval is over."""
SHARE = 10.0
"""After an evaluation the report may be early, but takes a tenth of one core's time at most."""
LONGEST_SECONDS = 600.0
"""A report that takes longer hangs, on a file system perhaps, and is ended."""
END_SECONDS = 60.0
"""Longest that the end of a run waits for its report."""


def write_at_end(run: RunDirectory, seconds: float = END_SECONDS) -> str | None:
    """Write a run's report now, and wait for it.

    Returns:
        Why there is none, in one line; None where all went well.
    """
    with tempfile.TemporaryFile() as said:
        try:
            process = _start(run, said)
        except OSError as error:
            return f"cannot start: {error}"
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"not written within {seconds:g} s"
        return _why(code, said)


def write_last(run: RunDirectory, *, done: bool) -> str | None:
    """Write the report of a run that a supervisor has brought to an end, as `write_at_end` does.

    A run that never came to a record has nothing to show.

    Args:
        run: whose report.
        done: whether training came to its end; the trainer has written the report then.
    """
    if not run.metrics_path.exists() or (done and _is_newer(run.report_path, run.progress_path)):
        return None
    return write_at_end(run)


def _is_newer(path: Path, other: Path) -> bool:
    try:
        return path.stat().st_mtime >= other.stat().st_mtime
    except OSError:
        return False


class Refresher:
    """Renews the report while a run trains, never twice at once. Rank zero alone has one.

    No method raises or waits for the process that writes.

    Args:
        run: whose report.
        every_seconds: from one report to the next, at least; 0 writes none.
        now: seconds that only grow.
    """

    def __init__(
        self,
        run: RunDirectory,
        every_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._every = every_seconds
        self._now = now
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._started = now()
        self._due = self._started + min(every_seconds, FIRST_SECONDS)
        self._took: float | None = None
        self._problem: str | None = None

    def refresh(self, *, evaluated: bool = False) -> None:
        """Begin a report if one is due and none is being written.

        Args:
            evaluated: whether an accuracy came in, which people wait for.
        """
        if not self._every or self._is_writing():
            return
        now = self._now()
        if evaluated and self._took is not None:
            self._due = min(self._due, self._started + SHARE * self._took)
        if now < self._due:
            return
        self._started, self._due = now, now + self._every
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
            self._process = _start(self._run, self._said, "--beside", str(os.getpid()))
        except OSError as error:
            self._problem = self._problem or f"cannot start: {error}"

    def problem(self) -> str | None:
        """Why the first report that could not be written was not; None while all is well."""
        return self._problem

    def close(self) -> None:
        """End what is being written."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        if self._said is not None:
            self._said.close()

    def _is_writing(self) -> bool:
        if self._process is None:
            return False
        code = self._process.poll()
        if code is None:
            if self._now() - self._started > LONGEST_SECONDS:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            return True
        self._process = None
        self._took = self._now() - self._started
        if self._said is not None:
            self._problem = self._problem or _why(code, self._said)
            self._said.close()
        return False


def _start(run: RunDirectory, said: IO[bytes], *options: str) -> subprocess.Popen[bytes]:
    """Start it in its own session, so that signals meant for the run pass it by."""
    return subprocess.Popen(
        [sys.executable, "-m", "pretrain.metrics", "report", str(run.path), *options],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # One that waits for a dead file system ends when that comes back, and then is init's.
    with suppress(subprocess.TimeoutExpired):
        process.wait(5.0)


def _why(code: int, said: IO[bytes]) -> str | None:
    """The last line of what a process that failed said."""
    if code == 0:
        return None
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"its process ended with code {code}"
