"""Watching runs from their files: a view on a terminal, plain lines elsewhere, and how it ended."""

import contextlib
import re
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from launch.ledger import Attempt, read_attempts
from launch.look_after.alerts import Alerts
from launch.look_after.logs import log_tail
from launch.look_after.screen import Lines, Screen, open_screen
from launch.look_after.stopping import EXIT_INTERRUPTED, stop_local
from launch.look_after.view import accuracies
from launch.status import Queue, Status, look
from launch.submit import read_job
from launch.supervise.decide import NEXT_IN_WORDS
from launch.supervise.supervisor import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from pretrain.config.load import CONFIGS_DIR, RESULTS
from pretrain.lookup import name_for_commands
from pretrain.run_directory import RunDirectory

LOOK_SECONDS = 0.25
LINE_SECONDS = {"local": 5.0, "slurm": 30.0}
"""Shortest time between two plain lines about the same state."""

_ELSEWHERE = {
    "status": "its state:     ",
    "logs --follow": "its log:       ",
    "follow": "watch it again:",
    "stop": "save and end:  ",
}
_CODES = {"done": EXIT_DONE, "stopped": EXIT_STOPPED}


def follow(
    runs: Sequence[RunDirectory], *, independent: bool = False, watch_only: bool = False
) -> int:
    """Show submitted runs in turn until each is at its end, or one ends otherwise than done.

    The first Ctrl-C asks a local run to save and stop, the second ends it at once; a Slurm job is
    only left alone.

    Args:
        runs: their directories.
        independent: a failed run does not end it.
        watch_only: Ctrl-C leaves a local run alone too.

    Returns:
        0 done, 70 failed, 75 stopped, 130 when leaving a job to itself.
    """
    queue = Queue()
    chain = [run.path.name for run in runs]
    failed = False
    with _interrupts() as interrupts, open_screen() as screen:
        answered = 0
        for run in runs:
            follower = _Follower(run, chain, queue, screen, interrupts, watch_only=watch_only)
            follower.answered = answered
            code = follower.to_the_end()
            answered = follower.answered
            if code not in (EXIT_DONE, EXIT_FAILED) or (code == EXIT_FAILED and not independent):
                return code
            failed = failed or code == EXIT_FAILED
    return EXIT_FAILED if failed else EXIT_DONE


class _Follower:
    """What has been said about one run, and what is new.

    Attributes:
        answered: how many of the interrupts were acted on.
    """

    def __init__(
        self,
        run: RunDirectory,
        chain: Sequence[str],
        queue: Queue,
        screen: Lines | Screen,
        interrupts: list[int],
        *,
        watch_only: bool,
    ) -> None:
        self._watch_only = watch_only
        self._run = run
        self._name = run.path.name
        self._chain = chain
        self._queue = queue
        self._screen = screen
        self._say = screen.say
        self._interrupts = interrupts
        self.answered = 0
        self._waiting_for = ""
        self._told: dict[int, Attempt] = {item.number: item for item in self._earlier()}
        self._alerts = Alerts(run.events_path)
        self._accuracies = accuracies(run.read_progress() or {})

    def to_the_end(self) -> int:
        """Show everything that happens until the run is at its end."""
        while True:
            status = look(self._run, self._queue)
            self._tell_attempts()
            for alert in self._alerts.news():
                self._say(f"{self._name}: {alert}", alarming=True)
            if not status.is_active:
                break
            self._tell_progress(status)
            if len(self._interrupts) > self.answered and not self._interrupted(status):
                return EXIT_INTERRUPTED
            time.sleep(LOOK_SECONDS)
        self._screen.clear()
        for line in ending(self._run, status, self._chain):
            self._say(line)
        return _CODES.get(status.phase, EXIT_FAILED)

    def _earlier(self) -> list[Attempt]:
        """Attempts of jobs before this one: history, not news."""
        job = read_job(self._run)
        ours = job.job_id if job else None
        return [item for item in read_attempts(self._run) if item.job != ours]

    def _tell_attempts(self) -> None:
        for attempt in read_attempts(self._run):
            told = self._told.get(attempt.number)
            if told is None:
                log = self._run.rank_log(attempt.number, 0)
                self._say(f"{self._name}: attempt {attempt.number} on {attempt.host}, log {log}")
            if attempt.next is not None and (told is None or told.next != attempt.next):
                after = NEXT_IN_WORDS[attempt.next]
                self._say(f"{self._name}: attempt {attempt.number}: {attempt.reason}; {after}")
            self._told[attempt.number] = attempt

    def _tell_progress(self, status: Status) -> None:
        if status.phase == "waiting":
            if status.detail != self._waiting_for:
                self._say(f"{self._name}: {status.detail}")
                self._waiting_for = status.detail
            self._screen.clear()
            return
        progress = self._run.read_progress()
        number = status.attempt.number if status.attempt else 0
        if progress is None or progress.get("attempt") != number:
            unknown = {"state": "starting", "attempt": number, "eta_seconds": None, "time": None}
            progress = (progress or {}) | unknown
        measured = accuracies(progress)
        news = [text for text in measured if text not in self._accuracies]
        if news:
            self._say(f"{self._name}: step {progress['step']:,}: {', '.join(news)}")
        self._accuracies = measured
        number_of = len(self._chain)
        place = f" ({self._chain.index(self._name) + 1} of {number_of})" if number_of > 1 else ""
        patience = LINE_SECONDS[status.job.executor if status.job else "local"]
        self._screen.show(f"{self._name}{place}", progress, line_seconds=patience)

    def _interrupted(self, status: Status) -> bool:
        """Act on Ctrl-C; False when there is nothing more to watch."""
        self.answered = len(self._interrupts)
        job = status.job
        if self._watch_only or (job is not None and job.executor == "slurm"):
            self._say(f"{self._name}: goes on without this window")
            for verb, meaning in _ELSEWHERE.items():
                self._say(
                    f"  {meaning} python launch/runs.py {verb} {name_for_commands(self._run)}"
                )
            return False
        now = self.answered > 1
        if not stop_local(self._run, status, now=now):
            return True
        if now:
            self._say(f"{self._name}: ending now")
        else:
            self._say(f"{self._name}: asked to save and stop; Ctrl-C again ends it at once")
        return True


def ending(run: RunDirectory, status: Status, chain: Sequence[str] = ()) -> list[str]:
    """The last lines about a run: how it ended, where everything is, what to do next.

    Args:
        run: its directory.
        status: where it stands now.
        chain: names of the runs that are followed; what comes in the chain is not suggested.
    """
    name = run.path.name
    lines = []
    if status.phase in ("failed", "lost"):
        log = _telling_log(run, status)
        tail = log_tail(log) if log else []
        lines += [f"last lines of {log}:", *(f"  {line}" for line in tail)] if tail else []
    repeated = status.detail.startswith(status.phase)
    lines.append(f"{name}: {status.detail if repeated else f'{status.phase}: {status.detail}'}")
    lines.append(f"run directory: {run.path}")
    if status.phase == "done":
        return lines + _results(run, chain)
    saved = run.newest_checkpoint_step()
    where = "from the start" if saved is None else f"from step {saved}"
    mended = status.attempt is not None and status.attempt.outcome == "bad_input"
    first = "mend what is named above, then " if mended else ""
    lines.append(f"next: {first}the same command goes on {where}")
    return lines


def _telling_log(run: RunDirectory, status: Status) -> Path | None:
    """The log in which the cause should be: the culprit's, or the supervisor's if it came first."""
    attempt, job = status.attempt, status.job
    if attempt is not None and (job is None or attempt.job == job.job_id):
        return run.rank_log(attempt.number, attempt.culprit_rank or 0)
    return Path(job.log) if job is not None else None


def _results(run: RunDirectory, chain: Sequence[str]) -> list[str]:
    lines = []
    if run.report_path.exists():
        lines.append(f"report: {run.report_path}")
    if run.export_dir.exists():
        lines.append(f"exported weights: {run.export_dir}")
    lines += [f"evaluation: {path}" for path in sorted(run.evaluation_dir.glob("*.md"))]
    lines += [f"converted weights: {path}" for path in sorted(run.converted_dir.glob("*"))]
    measured = accuracies(run.read_progress() or {})
    if measured:
        lines.append(f"accuracy: {', '.join(measured)}")
    if any(run.wandb_dir.glob("offline-run-*")):  # one for each attempt, all parts of one run
        lines.append(
            f"to Weights & Biases: wandb sync {shlex.quote(str(run.wandb_dir))}/offline-run-*"
        )
    return lines + _next_steps(run, chain)


def _next_steps(run: RunDirectory, chain: Sequence[str]) -> list[str]:
    """What to try with the weights of a finished run; nothing where the chain does it anyway."""
    name = run.path.name
    if f"{name}_{RESULTS}" in chain:
        return []
    says = re.compile(rf"^init_from:\s*{re.escape(name)}\s*$", re.MULTILINE)
    paths = sorted(CONFIGS_DIR.glob("*.yaml"))
    further = [path.stem for path in paths if says.search(path.read_text(encoding="utf-8"))]
    if not further and run.export_dir.exists():
        return [
            f"next: start another run from these weights with init_from={name}, or train on your "
            "own images (README.md, Train)"
        ]
    return [
        f"next: python launch/slurm.py --config {name}" for name in further if name not in chain
    ]


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that grows by one with each Ctrl-C, instead of ending this process."""
    seen: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
