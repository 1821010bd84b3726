"""The verb ``logs``: what ranks and supervisors printed, from any shell."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launch.look_after.logs import last_lines
from launch.look_after.tables import one_line
from launch.status import Queue, look
from launch.submit import read_job
from pretrain.errors import LaunchError
from pretrain.run_directory import RunDirectory

BLOCK_BYTES = 64 * 1024
LOOK_SECONDS = 0.25
_RANK_LOG = re.compile(r"rank_(\d+)\.log")


def show_logs(
    run: RunDirectory,
    *,
    attempt: int | None,
    rank: int,
    supervisor: bool,
    every: bool,
    lines: int | None,
    keep_on: bool,
) -> int:
    """Print the end of a log, or of every log of an attempt.

    Args:
        run: its directory.
        attempt: which one; None is the newest, and with ``keep_on`` whichever comes after it.
        rank: whose log.
        supervisor: the supervisor's instead of a rank's.
        every: the supervisor's and each rank's, below headings.
        lines: as many from the end; None is all.
        keep_on: print what is written from now on, until the run is no longer active.

    Raises:
        LaunchError: there is no such attempt or log; names those there are.
    """
    numbers = attempt_numbers(run)
    if attempt is not None and attempt not in numbers:
        raise LaunchError(f"--attempt {attempt}: {run.path.name} has {_these('attempt', numbers)}")
    if not numbers:
        return _show_job_log(run, lines)
    number = numbers[-1] if attempt is None else attempt
    if every:
        for path in [run.attempt_dir(number) / "supervisor.log", *_rank_logs(run, number).values()]:
            print(f"==> {path} <==")
            _print_end(path, lines)
        return 0
    path = _log(run, number, rank, supervisor=supervisor)
    if not keep_on:
        _print_end(path, lines)
        return 0
    return _follow(run, path, rank, lines, supervisor=supervisor, moves_on=attempt is None)


def attempt_numbers(run: RunDirectory) -> list[int]:
    """The attempts that have logs, in order."""
    if not run.attempts_dir.is_dir():
        return []
    return sorted(int(entry.name) for entry in run.attempts_dir.iterdir() if entry.name.isdigit())


def _log(run: RunDirectory, number: int, rank: int, *, supervisor: bool) -> Path:
    if supervisor:
        path = run.attempt_dir(number) / "supervisor.log"
        if not path.exists():
            raise LaunchError(f"{path}: attempt {number} was made without a supervisor")
        return path
    logs = _rank_logs(run, number)
    if rank not in logs:
        raise LaunchError(f"--rank {rank}: attempt {number} has {_these('log of rank', [*logs])}")
    return logs[rank]


def _rank_logs(run: RunDirectory, number: int) -> dict[int, Path]:
    entries = sorted(run.attempt_dir(number).iterdir())
    matches = ((_RANK_LOG.fullmatch(entry.name), entry) for entry in entries)
    return dict(sorted((int(match[1]), entry) for match, entry in matches if match))


def _these(what: str, numbers: list[int]) -> str:
    if not numbers:
        return f"no {what}"
    if len(numbers) == 1:
        return f"{what} {numbers[0]}"
    return f"{what} {numbers[0]} to {numbers[-1]}"


def _show_job_log(run: RunDirectory, lines: int | None) -> int:
    job = read_job(run)
    log = Path(job.log) if job is not None else None
    if log is None or not log.exists():
        raise LaunchError(f"{run.path}: no attempt was made yet, so there is no log")
    print(f"no attempt yet; {log} says:")
    _print_end(log, lines)
    return 0


def _print_end(path: Path, lines: int | None) -> None:
    try:
        if lines is not None:
            for line in last_lines(path, lines):
                print(line)
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                sys.stdout.write(line)
    except FileNotFoundError:
        raise LaunchError(f"{path}: vanished") from None


def _whole_lines_bytes(path: Path) -> int:
    """Length of a log up to its last complete line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - BLOCK_BYTES))
        block = file.read(BLOCK_BYTES)
    return size - len(block) + block.rfind(b"\n") + 1 if b"\n" in block else 0


def _follow(
    run: RunDirectory,
    path: Path,
    rank: int,
    lines: int | None,
    *,
    supervisor: bool,
    moves_on: bool,
) -> int:
    """Print a log as it grows, then that of each attempt that follows; Ctrl-C only leaves."""
    queue = Queue()
    whole = _whole_lines_bytes(path)
    for line in [] if lines is None else last_lines(path, lines, end=whole):
        print(line)
    reader = _Growing(path, 0 if lines is None else whole)
    while True:
        status = look(run, queue)
        for text in reader.news(to_the_end=not status.is_active):
            sys.stdout.write(text)
        sys.stdout.flush()
        newest = (attempt_numbers(run) or [0])[-1]
        name = "supervisor.log" if supervisor else run.rank_log(newest, rank).name
        following = run.attempt_dir(newest) / name
        if moves_on and following != reader.path and following.exists():
            print(f"==> {following} <==")
            reader = _Growing(following, 0)
            continue
        if not status.is_active:
            print(one_line(f"{run.path.name}: {status.phase}: {status.detail}"))
            return 0
        time.sleep(LOOK_SECONDS)


class _Growing:
    """What is added to a text file after its first lines; a line cut in two waits for its rest."""

    def __init__(self, path: Path, offset: int) -> None:
        self.path = path
        self._offset = offset

    def news(self, *, to_the_end: bool = False) -> Iterator[str]:
        """Yield what was added since the last call, in whole lines unless ``to_the_end``."""
        with self.path.open("rb") as file:
            while True:
                file.seek(self._offset)
                block = file.read(BLOCK_BYTES)
                whole = block[: block.rfind(b"\n") + 1]
                if not whole and (to_the_end or len(block) == BLOCK_BYTES):
                    whole = block
                if not whole:
                    return
                self._offset += len(whole)
                yield whole.decode("utf-8", errors="replace")
