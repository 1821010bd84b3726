"""What a job runs: one supervisor that starts the ranks, watches them and decides what follows.

Plain Python without torch. One supervisor at a time holds a run directory; everything it decides is
in the ledger, so that the next one, or anybody who looks, knows.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType

from launch import scheduler
from launch.container import python_of_ranks
from launch.ledger import (
    Attempt,
    Next,
    Outcome,
    append_end,
    append_ranks,
    append_start,
    attempts_without_progress,
    read_attempts,
)
from launch.ranks import Failure, Layout, LocalRanks, Ranks, end_leftovers, rank_command
from launch.srun import SlurmRanks
from pretrain.errors import LaunchError, PretrainError
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import run_lock

EXIT_DONE = 0
EXIT_FAILED = 70
EXIT_STOPPED = 75
"""Not zero, so that Slurm starts nothing that waits for the run's success."""

POLL_SECONDS = 0.05
PEERS_SECONDS = 1.0
"""Time for the other ranks to write down what they saw of a failure, before they are killed."""
LEAVE_SECONDS = 300.0
"""Time for the last rank to leave after the first one has."""
LEFTOVER_SECONDS = 60.0
"""Time for ranks that outlived a killed supervisor to finish saving."""
LOCK_SECONDS = 180.0
"""More than the lease after which NFS frees the locks of a client that is gone."""
LOG_TAIL_LINES = 20


class StopRequest:
    """What signals have asked of this supervisor: SIGTERM, SIGINT, SIGUSR2 stop; SIGQUIT ends now.

    Handlers only set flags. Replaces the handlers that submitit installs.
    """

    def __init__(self) -> None:
        self.stop = False
        self.now = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGQUIT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.stop = True
        self.now = self.now or number == signal.SIGQUIT


def run_job(paths: Sequence[str], command: Sequence[str] | None = None) -> None:
    """Entry point of a submitted job: supervise the runs in turn, exit with the first bad code.

    A run whose ``init_from`` names one of the others starts only when that one is done.

    Args:
        paths: run directories.
        command: what every rank runs; None is the trainer.

    Raises:
        SystemExit: 70 when a run failed, 75 when one was stopped.
    """
    request = StopRequest()
    os.umask(0o077)  # a run is its owner's alone, logs and all
    code = EXIT_DONE
    unfinished: set[str] = set()
    for path in paths:
        result = _take_turn(RunDirectory(path), request, command, unfinished)
        if result != EXIT_DONE:
            unfinished.add(RunDirectory(path).path.name)
            code = code or result
        if request.stop:
            break
    if code != EXIT_DONE:
        sys.exit(code)


def _take_turn(
    run: RunDirectory,
    request: StopRequest,
    command: Sequence[str] | None,
    unfinished: Collection[str],
) -> int:
    try:
        parent = run.read_config().init_from
        if parent in unfinished:
            print(f"{run.path.name}: not started, {parent} is not done", flush=True)
            return EXIT_FAILED
        return supervise(run, request, command)
    except PretrainError as error:
        print(f"{run.path.name}: {error}", flush=True)
        return EXIT_FAILED


def supervise(run: RunDirectory, request: StopRequest, command: Sequence[str] | None = None) -> int:
    """Bring one run to its end, through as many attempts as it takes.

    Where another supervisor has the run, wait for its end; in Slurm, where waiting wastes nodes,
    only as long as a network file system takes to forget the lock of a lost machine.

    Returns:
        0 done, 70 failed for good, 75 stopped on request (or put back into Slurm's queue).
    """
    give_up = time.monotonic() + LOCK_SECONDS
    while not request.stop:
        with run_lock(run, job_id()) as held:
            if held and run.is_done():
                print(f"{run.path.name}: already done", flush=True)
                return EXIT_DONE
            if held:
                ranks = command or rank_command(run, python_of_ranks(run.read_config()))
                return _Supervisor(run, request, ranks).bring_to_end()
        if "SLURM_JOB_ID" in os.environ and time.monotonic() > give_up:
            print(f"{run.path}: another supervisor has this run; nothing was started", flush=True)
            return EXIT_FAILED
        time.sleep(1.0)
    return EXIT_STOPPED


def job_id() -> str:
    """The job this process belongs to; attempts of one job count together.

    An element of a job array is named as submitit and ``scontrol`` do, ``1234_5``.
    """
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    for name in ("SLURM_JOB_ID", "SUBMITIT_LOCAL_JOB_ID"):
        if os.environ.get(name):
            return os.environ[name]
    return f"process-{os.getpid()}"


def layout_of(run: RunDirectory) -> Layout:
    """The shape of the job, from the run's plan and config.

    Raises:
        LaunchError: plan.json is missing or damaged.
    """
    config = run.read_config()
    try:
        plan = json.loads(run.plan_path.read_text())
        nodes, ranks_per_node = int(plan["nodes"]), int(plan["ranks_per_node"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LaunchError(
            f"{run.plan_path}: cannot be read ({error!r}); launch again to write it anew"
        ) from None
    return Layout(
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        cpus_per_rank=config.cluster.cpus_per_rank,
        threads_per_rank=config.engine.threads_per_rank,
    )


class _Supervisor:
    """One supervisor at work on the run it holds."""

    def __init__(self, run: RunDirectory, request: StopRequest, command: Sequence[str]) -> None:
        self._run = run
        self._request = request
        self._command = command
        self._slurm = "SLURM_JOB_ID" in os.environ and (
            run.read_config().cluster.executor == "slurm"
        )
        self._job = job_id()
        self._limit = run.read_config().cluster.max_attempts_without_progress
        self._log_path: Path | None = None

    def bring_to_end(self) -> int:
        """Make attempts until one of them is the last."""
        self._end_what_is_left()
        number = self._last_number()
        while True:
            number += 1
            try:
                next_action = self._attempt(number)
            except PretrainError as error:
                self._record_end(number, "bad_input", "give_up", str(error), None)
                next_action = "give_up"
            if next_action != "restart":
                break
        if next_action == "done":
            return EXIT_DONE
        return EXIT_FAILED if next_action == "give_up" else EXIT_STOPPED

    def _last_number(self) -> int:
        """Number of the newest attempt, those made without a supervisor included."""
        numbers = [attempt.number for attempt in read_attempts(self._run)]
        if self._run.attempts_dir.is_dir():
            entries = self._run.attempts_dir.iterdir()
            numbers += [int(entry.name) for entry in entries if entry.name.isdigit()]
        return max(numbers, default=0)

    def _end_what_is_left(self) -> None:
        attempts = read_attempts(self._run)
        if not attempts or attempts[-1].outcome is not None:
            return
        last: Attempt = attempts[-1]
        if last.host == socket.gethostname() and last.ranks:
            killed = end_leftovers(last.ranks, patience_seconds=LEFTOVER_SECONDS)
            if killed:
                self._say(f"killed {len(killed)} ranks left over from attempt {last.number}")

    def _attempt(self, number: int) -> Next:
        run = self._run
        run.attempt_dir(number).mkdir(parents=True, exist_ok=True)
        self._log_path = run.attempt_dir(number) / "supervisor.log"
        before = run.newest_checkpoint_step()
        earlier = read_attempts(run)
        append_start(run, number, job=self._job, host=socket.gethostname(), checkpoint_step=before)
        spent = attempts_without_progress(earlier, job=self._job, checkpoint_step=before)
        if spent >= self._limit:  # vanished attempts: their supervisor could not give up itself
            reason = f"{spent} attempts without a newer checkpoint"
            return self._record_end(number, "crashed", "give_up", reason, None)
        layout = layout_of(run)
        where = "from the start" if before is None else f"from step {before}"
        self._say(f"attempt {number}: starting {layout.size} ranks {where}")
        start: Callable[..., Ranks] = SlurmRanks if self._slurm else LocalRanks
        ranks = start(self._command, run, number, layout)
        try:
            append_ranks(run, number, ranks.processes)
            self._watch(ranks)
            failure = ranks.failure()
        finally:
            ranks.kill()
        return self._decide(number, failure, spent)

    def _watch(self, ranks: Ranks) -> None:
        """Return when all ranks have ended or the attempt cannot go on."""
        asked = False
        leave_by: float | None = None
        while not ranks.ended():
            if self._request.now:
                self._say("ending the ranks now, as asked")
                return
            if self._request.stop and not asked:
                asked = True
                self._say("asking the ranks to save and stop")
                ranks.ask_to_stop()
            if ranks.failure() is not None:
                deadline = time.monotonic() + PEERS_SECONDS
                while not ranks.ended() and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                return
            if leave_by is None and ranks.any_ended():
                leave_by = time.monotonic() + LEAVE_SECONDS
            if leave_by is not None and time.monotonic() > leave_by:
                self._say(f"a rank did not leave within {LEAVE_SECONDS:g} s of the first")
                return
            time.sleep(POLL_SECONDS)

    def _decide(self, number: int, failure: Failure | None, spent: int) -> Next:
        outcome, reason = self._classify(number, failure)
        culprit = failure.rank if failure else None
        if outcome == "done":
            return self._record_end(number, outcome, "done", reason, None)
        if outcome == "bad_input":
            return self._record_end(number, outcome, "give_up", reason, culprit)
        if self._request.stop:
            return self._record_end(number, outcome, "stop", reason, culprit)
        progressed = _newer(self._run.newest_checkpoint_step(), self._before(number))
        if not progressed and spent + 1 >= self._limit:
            reason += f"; {spent + 1} attempts without a newer checkpoint"
            return self._record_end(number, outcome, "give_up", reason, culprit)
        if outcome == "crashed" and not self._slurm:
            return self._record_end(number, outcome, "restart", reason, culprit)
        return self._decide_in_slurm(number, outcome, reason, culprit)

    def _decide_in_slurm(
        self, number: int, outcome: Outcome, reason: str, culprit: int | None
    ) -> Next:
        """Restart in the same allocation, or leave it as Slurm wants.

        Ranks that stopped though nobody asked this supervisor were signalled by Slurm. While the
        job still counts as running, that is the time limit or a preemption with grace, after which
        Slurm itself would call the job complete. In any other state the job was cancelled or is
        being requeued, and putting it back could bring a cancelled job to life.
        """
        if not self._slurm:
            return self._record_end(number, outcome, "stop", reason, culprit)
        try:
            job = scheduler.job_state(self._job)
            state = job.state if job else "unknown"
        except LaunchError as error:
            state = str(error)
        if state != "RUNNING":
            return self._record_end(number, outcome, "stop", f"{reason}; job {state}", culprit)
        if outcome == "crashed":
            return self._record_end(number, outcome, "restart", reason, culprit)
        # Recorded first: the requeue may kill this process at once.
        result = self._record_end(number, outcome, "requeue", reason, culprit)
        refusal = scheduler.requeue(self._job)
        if refusal:
            self._say(f"Slurm refuses to requeue: {refusal}; run the same command to go on")
            return self._record_end(number, outcome, "stop", f"{reason}; {refusal}", culprit)
        return result

    def _classify(self, number: int, failure: Failure | None) -> tuple[Outcome, str]:
        left = self._run.read_outcome(number) or {}
        outcome = left.get("outcome")
        if failure and failure.bad_input:
            return "bad_input", f"{failure.reason} (bad input)"
        if failure is None and outcome == "done":
            return "done", f"done at step {left.get('step')}"
        if failure is None and outcome == "stopped":
            return "stopped", f"saved and stopped at step {left.get('step')}"
        if self._request.stop:
            return "stopped", "stopped without saving"
        if failure is None:
            return "crashed", "the ranks left without saying why"
        return "crashed", failure.reason

    def _before(self, number: int) -> int | None:
        (attempt,) = (item for item in read_attempts(self._run) if item.number == number)
        return attempt.checkpoint_step_before

    def _record_end(
        self, number: int, outcome: Outcome, next_action: Next, reason: str, culprit: int | None
    ) -> Next:
        append_end(
            self._run,
            number,
            outcome=outcome,
            next_action=next_action,
            checkpoint_step=self._run.newest_checkpoint_step(),
            reason=reason,
            culprit_rank=culprit,
        )
        self._say(f"attempt {number}: {reason}; {NEXT_IN_WORDS[next_action]}")
        if next_action == "give_up" and culprit is not None:
            for line in log_tail(self._run.rank_log(number, culprit)):
                self._say(f"rank {culprit}: {line}")
        return next_action

    def _say(self, text: str) -> None:
        stamp = datetime.now().astimezone().isoformat(timespec="seconds")
        print(f"{stamp} {text}", flush=True)
        if self._log_path is not None:
            with self._log_path.open("a", encoding="utf-8") as log:
                log.write(f"{stamp} {text}\n")


NEXT_IN_WORDS: dict[Next, str] = {
    "done": "the run is done",
    "restart": "restarting",
    "requeue": "going back into Slurm's queue",
    "stop": "the run is stopped",
    "give_up": "giving up",
}


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of a log, read from its end; nothing where there is no log."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 64 * 1024))
            text = log.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:]


def _newer(after: int | None, before: int | None) -> bool:
    return after is not None and (before is None or after > before)
