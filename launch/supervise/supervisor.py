"""What a job runs: one supervisor that starts the ranks, watches them and does what follows.

Plain Python without torch. One supervisor at a time holds a run directory; everything it decides
(`launch.supervise.decide`) is in the ledger, so that the next one, or anybody who looks, knows.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from launch.container import python_of_ranks
from launch.ledger import (
    Attempt,
    Next,
    append_end,
    append_finding,
    append_ranks,
    append_start,
    attempts_without_progress,
    crashes_at_step,
    read_attempts,
    tell,
)
from launch.look_after.logs import log_tail
from launch.supervise.allocation import Allocation
from launch.supervise.decide import NEXT_IN_WORDS, Decision, Facts, Failure, decide
from launch.supervise.history import Traces, findings, last_step, lost_steps, phase_of
from launch.supervise.nodes import bad_ranks
from launch.supervise.ranks import Layout, LocalRanks, Ranks, end_leftovers, rank_command
from launch.supervise.signs import Signs
from launch.supervise.srun import SlurmRanks
from launch.supervise.views import wrap_up
from launch.supervise.watch import StopRequest, name_culprit, watch
from pretrain.errors import LaunchError, PretrainError
from pretrain.files import replace_text
from pretrain.metrics.alerts import end_text
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import run_lock
from pretrain.world import node_name

EXIT_DONE = 0
EXIT_FAILED = 70
EXIT_STOPPED = 75
"""Not zero, so that Slurm starts nothing that waits for the run's success."""

LEFTOVER_SECONDS = 60.0
"""Time for ranks that outlived a killed supervisor to finish saving."""
LOCK_SECONDS = 180.0
"""More than the lease after which NFS frees the locks of a client that is gone."""


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
                return _Supervisor(run, request, command).bring_to_end()
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

    def __init__(
        self, run: RunDirectory, request: StopRequest, command: Sequence[str] | None
    ) -> None:
        self._run = run
        self._request = request
        self._command = command
        self._config = run.read_config()
        self._job = job_id()
        self._allocation: Allocation | None = None
        if "SLURM_JOB_ID" in os.environ and self._config.cluster.executor == "slurm":
            self._allocation = Allocation(run, self._config, self._job)
        self._limit = self._config.cluster.max_attempts_without_progress
        self._log_path: Path | None = None

    def bring_to_end(self) -> int:
        """Make attempts until one of them is the last."""
        self._look_back()
        number = self._last_number()
        while True:
            number += 1
            try:
                next_action = self._attempt(number)
            except PretrainError as error:
                refused = Decision("bad_input", "bad_input", "give_up", str(error))
                next_action = self._record_end(number, refused, None)
            if next_action != "restart":
                break
        for problem in wrap_up(self._run, self._config, next_action):
            self._say(problem)
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

    def _look_back(self) -> None:
        """End what is left of the attempt before, and write down what is known of its end now."""
        attempts = read_attempts(self._run)
        if not attempts:
            return
        last: Attempt = attempts[-1]
        if last.outcome is None and last.host == socket.gethostname() and last.ranks:
            killed = end_leftovers(last.ranks, patience_seconds=LEFTOVER_SECONDS)
            if killed:
                self._say(f"killed {len(killed)} ranks left over from attempt {last.number}")
        traces = self._allocation.traces(last) if self._allocation else Traces()
        found = findings(self._run, last, traces)
        if found:
            append_finding(self._run, last.number, **found)
            reason = found.get("reason", found["cause"])
            self._say(f"attempt {last.number}: {reason}")
            if last.outcome is None:
                said = end_text(last.number, reason, "it goes on now")
                tell(self._run, last.number, "alert", about="failure", text=said)

    def _attempt(self, number: int) -> Next:
        run = self._run
        run.attempt_dir(number).mkdir(parents=True, exist_ok=True)
        self._log_path = run.attempt_dir(number) / "supervisor.log"
        before = run.newest_checkpoint_step()
        earlier = read_attempts(run)
        layout = layout_of(run)
        nodes = self._allocation.nodes if self._allocation else (node_name(),)
        append_start(
            run,
            number,
            job=self._job,
            host=socket.gethostname(),
            checkpoint_step=before,
            nodes=nodes,
            restarts=self._allocation.restarts if self._allocation else None,
        )
        spent = attempts_without_progress(earlier, job=self._job, checkpoint_step=before)
        if spent >= self._limit:  # vanished attempts: their supervisor could not give up itself
            reason = f"{spent} attempts without a newer checkpoint"
            given_up = Decision("crashed", "no_progress", "give_up", reason)
            return self._record_end(number, given_up, None)
        run.failure_path.unlink(missing_ok=True)
        self._warn(number)
        where = "from the start" if before is None else f"from step {before}"
        self._say(f"attempt {number}: starting {layout.size} ranks {where}")
        failure = self._run_ranks(number, layout, nodes)
        facts = self._facts(number, earlier, failure, before)
        return self._act(number, decide(facts), failure)

    def _warn(self, number: int) -> None:
        for warning in self._allocation.warnings() if self._allocation else []:
            self._say(f"warning: {warning}")
            tell(self._run, number, "save_too_slow", reason=warning)

    def _run_ranks(self, number: int, layout: Layout, nodes: tuple[str, ...]) -> Failure | None:
        """Start the ranks, watch them to their end, and say what failed first."""
        signs = Signs(self._run, number, layout, nodes, self._config)
        start: Callable[..., Ranks] = SlurmRanks if self._allocation else LocalRanks
        command = self._command or rank_command(self._run, python_of_ranks(self._config))
        ranks = start(command, self._run, number, layout)
        try:
            append_ranks(self._run, number, ranks.processes)
            failure = watch(ranks, self._request, signs, self._say)
        finally:
            ranks.kill()
        if failure is None:
            return None
        if failure.cause == "rank_hung":
            failure = name_culprit(self._run, number, failure, layout, nodes)
        named = bad_ranks(self._run, number)
        if named and failure.cause in ("bad_node", "diverged_ranks"):
            first = named[0]
            reason = "; ".join(f"rank {bad.rank} on {bad.node}: {bad.why}" for bad in named)
            failure = replace(failure, rank=first.rank, node=first.node, reason=reason)
        phase = failure.phase or phase_of(self._run, number) or signs.phase()
        return replace(failure, phase=phase)

    def _facts(
        self, number: int, earlier: list[Attempt], failure: Failure | None, before: int | None
    ) -> Facts:
        """Everything that decides what follows."""
        run = self._run
        left = run.read_outcome(number) or {}
        step = last_step(run, number)
        job = None
        if self._allocation is not None and (failure is not None or left.get("outcome") != "done"):
            asked = self._request
            job = self._allocation.facts(number, earlier, failure, lambda: asked.stop)
        return Facts(
            intent=left.get("outcome"),
            intent_step=left.get("step"),
            failure=failure,
            asked=self._request.stop,
            progressed=_newer(run.newest_checkpoint_step(), before),
            vain=attempts_without_progress(earlier, job=self._job, checkpoint_step=before),
            same_step=crashes_at_step(earlier, job=self._job, step=step),
            last_step=step,
            limit=self._limit,
            job=job,
        )

    def _act(self, number: int, decision: Decision, failure: Failure | None) -> Next:
        """Write the decision down and do what it says."""
        allocation = self._allocation
        if decision.exclude and allocation is not None:
            allocation.exclude(decision.exclude, f"attempt {number}: {decision.reason}")
        # Recorded first: a requeue may kill this process at once.
        self._record_end(number, decision, failure)
        if decision.next == "requeue" and allocation is not None:
            refusal = allocation.requeue()
            if refusal is None:
                return "requeue"
            reason = f"{decision.reason}; Slurm does not requeue the job ({refusal})"
            decision = replace(decision, next="resubmit", reason=reason)
            self._record_end(number, decision, failure)
        if decision.next == "resubmit" and allocation is not None:
            try:
                self._say(f"job {allocation.resubmit(self._command)} goes on with the run")
            except LaunchError as error:
                reason = f"{decision.reason}; {error}; run the same command to go on"
                decision = replace(decision, next="give_up", reason=reason)
                self._record_end(number, decision, failure)
        return decision.next

    def _record_end(self, number: int, decision: Decision, failure: Failure | None) -> Next:
        run = self._run
        step, saved = last_step(run, number), run.newest_checkpoint_step()
        append_end(
            run,
            number,
            outcome=decision.outcome,
            cause=decision.cause,
            next_action=decision.next,
            reason=decision.reason,
            checkpoint_step=saved,
            culprit_rank=failure.rank if failure else None,
            culprit_node=failure.node if failure else None,
            phase=failure.phase if failure else phase_of(run, number),
            last_step=step,
            lost_steps=lost_steps(step, saved),
        )
        self._say(f"attempt {number}: {decision.reason}; {NEXT_IN_WORDS[decision.next]}")
        if decision.outcome in ("crashed", "bad_input"):
            said = end_text(number, decision.reason, NEXT_IN_WORDS[decision.next])
            tell(run, number, "alert", about="failure", text=said, step=step)
        if decision.next == "give_up":
            self._leave_failure(number, failure)
        return decision.next

    def _leave_failure(self, number: int, failure: Failure | None) -> None:
        """Show the culprit's last lines, and leave a file that says why there is no more."""
        from launch.look_after.why import explain_attempt, text  # it imports what imports this

        if failure is not None and failure.rank is not None:
            for line in log_tail(self._run.rank_log(number, failure.rank)):
                self._say(f"rank {failure.rank}: {line}")
        said = text(explain_attempt(self._run, "failed", read_attempts(self._run)))
        replace_text(self._run.failure_path, said + "\n")

    def _say(self, text: str) -> None:
        stamp = datetime.now().astimezone().isoformat(timespec="seconds")
        print(f"{stamp} {text}", flush=True)
        if self._log_path is not None:
            with self._log_path.open("a", encoding="utf-8") as log:
                log.write(f"{stamp} {text}\n")


def _newer(after: int | None, before: int | None) -> bool:
    return after is not None and (before is None or after > before)
