"""The deaths that a run on the private cluster is made to die, one function each."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from soak_run import TIME_LIMIT_MINUTES, WatchedRun, wait_until

from launch.ledger import read_attempts

LEAD_MINUTES = 3
"""How long before its end Slurm signals a job of this project."""
CONTROLLER_AWAY_SECONDS = 5
START_SECONDS = 5.0
"""About what a rank needs from its start to its first step."""
CONTROLLER_SAVE_SECONDS = 10
"""A slurmctld that is killed forgets its last five seconds, and a successor that does not know of a
job that had begun in them drains its nodes: nothing in a job can mend that."""
HARMLESS_STEPS = 5
"""A fault that must end nothing is over when this many steps more are done."""


@dataclass(frozen=True)
class Fault:
    """One kind of death.

    Attributes:
        meaning: what happens, for the report.
        strike: makes it happen; what it returns is called once the run has noticed, and does what
            the cluster's operators do: a dead machine is started again.
        ends_attempts: how many attempts cannot go on; 0 where nothing may happen to the ranks.
        after_seconds: how long the job must have run before.
    """

    meaning: str
    strike: Callable[[WatchedRun, random.Random], Callable[[], None]]
    ends_attempts: int = 1
    after_seconds: int = 0


def _slurm(*command: str) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {answer.stderr.strip()}")
    return answer.stdout


def _nothing() -> None:
    """Nothing is left to be mended."""


def time_limit(run: WatchedRun, _: random.Random) -> Callable[[], None]:
    """Less time is left than the lead with which Slurm warns: it signals within half a minute."""
    job = run.job()
    limit = run.job_seconds() // 60 + LEAD_MINUTES
    _slurm("scontrol", "update", f"jobid={job}", f"TimeLimit={limit}")
    return lambda: _set_limit(job)


def _set_limit(job: str) -> None:
    _slurm("scontrol", "update", f"jobid={job}", f"TimeLimit={TIME_LIMIT_MINUTES}")


def limit_signal(run: WatchedRun, _: random.Random) -> Callable[[], None]:
    """What ``--signal=USR2@180`` does: to the ranks, not to the batch process."""
    _slurm("scancel", "--signal=USR2", run.job())
    return _nothing


def preempt(grace_seconds: int) -> Callable[[WatchedRun, random.Random], Callable[[], None]]:
    """A job of a higher partition takes the very nodes."""

    def strike(run: WatchedRun, _: random.Random) -> Callable[[], None]:
        nodes = run.nodes()
        _slurm("scontrol", "update", "partitionname=main", f"GraceTime={grace_seconds}")
        command = ["sbatch", "-p", "high", f"--nodes={len(nodes)}", "--exclusive"]
        command += [f"--nodelist={','.join(nodes)}", "--output=/dev/null", "--wrap=sleep 1"]
        _slurm(*command)
        return _nothing

    return strike


def requeue(run: WatchedRun, _: random.Random) -> Callable[[], None]:
    """An administrator puts the job back."""
    _slurm("scontrol", "requeue", run.job())
    return _nothing


def kill_node(index: int) -> Callable[[WatchedRun, random.Random], Callable[[], None]]:
    """A node of the job loses its power; it comes back once the run has noticed."""

    def strike(run: WatchedRun, _: random.Random) -> Callable[[], None]:
        node = run.nodes()[index]
        run.cluster.kill_node(node)
        return lambda: run.cluster.start_node(node)

    return strike


def node_down(run: WatchedRun, rng: random.Random) -> Callable[[], None]:
    """An administrator takes a node of the job down, and later back."""
    node = rng.choice(run.nodes())
    _slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=soak")
    return lambda: _resume(node)


def _resume(node: str) -> None:
    """Once Slurm has done with taking it down; it may have come back by itself."""

    def is_back() -> bool:
        if "DOWN" not in _slurm("scontrol", "-o", "show", "node", node):
            return True
        command = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(command, check=False, capture_output=True)
        return False

    wait_until(is_back, f"{node} to come back")


def kill_rank(run: WatchedRun, rng: random.Random) -> Callable[[], None]:
    """One rank gets SIGKILL, as from the kernel when memory ends."""
    _signal_rank(run, rng, signal.SIGKILL)
    return _nothing


def stop_rank(run: WatchedRun, rng: random.Random) -> Callable[[], None]:
    """One rank stands still for ever: the others wait in a collective."""
    _signal_rank(run, rng, signal.SIGSTOP)
    return _nothing


def _signal_rank(run: WatchedRun, rng: random.Random, number: signal.Signals) -> None:
    found: list[int] = []

    def look() -> bool:  # in the first moments of an attempt there are none
        found[:] = run.rank_processes()
        return bool(found)

    wait_until(look, "ranks")
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(found), number)


def preempt_while_starting(run: WatchedRun, rng: random.Random) -> Callable[[], None]:
    """A rank dies, and the attempt that follows is preempted before its first step."""
    attempts = len(read_attempts(run.directory))
    kill_rank(run, rng)
    wait_until(lambda: len(read_attempts(run.directory)) > attempts, "the attempt that follows")
    time.sleep(rng.uniform(0, START_SECONDS))
    return preempt(rng.choice((0, 2, 10)))(run, rng)


def restart_controller(run: WatchedRun, _: random.Random) -> Callable[[], None]:
    """The slurmctld is killed and comes back after a while."""
    run.cluster.kill_controller()
    time.sleep(CONTROLLER_AWAY_SECONDS)
    run.cluster.start_controller()
    return _nothing


def kill_rank_without_controller(run: WatchedRun, rng: random.Random) -> Callable[[], None]:
    """A rank dies while nobody answers for the cluster."""
    run.cluster.kill_controller()
    _signal_rank(run, rng, signal.SIGKILL)
    time.sleep(CONTROLLER_AWAY_SECONDS)
    run.cluster.start_controller()
    return _nothing


def submit_twice(run: WatchedRun, _rng: random.Random) -> Callable[[], None]:
    """The same command twice at one moment, and then its supervisor behind the command's back."""
    for output in run.launch_twice():
        if "already active" not in output:
            raise RuntimeError(f"submitted again: {output}")
    for process in [run.start_second_supervisor() for _ in range(2)]:
        if process.wait() != 0:
            raise RuntimeError("a second supervisor cannot be submitted")
    return lambda: _cancel_all_but(run.job())


def _cancel_all_but(job: str) -> None:
    """Else they would take over at the next fault, and no later one would need the queue."""
    others = set(_slurm("squeue", "--noheader", "--format=%A").split()) - {job}
    _slurm("scancel", *others)


FAULTS = {
    "time_limit": Fault("the time limit comes near", time_limit),
    "limit_signal": Fault("the signal before the limit, USR2 to the step", limit_signal),
    "preempt_0": Fault("preempted, no grace", preempt(0)),
    "preempt_2": Fault("preempted, 2 s grace", preempt(2)),
    "preempt_10": Fault("preempted, 10 s grace", preempt(10)),
    "requeue": Fault("`scontrol requeue`", requeue),
    "first_node_killed": Fault(
        "slurmd and all steps killed on the supervisor's node", kill_node(0)
    ),
    "other_node_killed": Fault("slurmd and all steps killed on another node", kill_node(-1)),
    "node_down": Fault("a node set down", node_down),
    "rank_killed": Fault("one rank SIGKILLed", kill_rank),
    "rank_hung": Fault("one rank SIGSTOPped", stop_rank),
    "preempted_while_starting": Fault(
        "one rank SIGKILLed, and preempted while it starts again",
        preempt_while_starting,
        ends_attempts=2,
    ),
    "controller_restarted": Fault(
        "slurmctld killed, back after 5 s",
        restart_controller,
        ends_attempts=0,
        after_seconds=CONTROLLER_SAVE_SECONDS,
    ),
    "rank_killed_without_controller": Fault(
        "one rank SIGKILLed while slurmctld is away",
        kill_rank_without_controller,
        after_seconds=CONTROLLER_SAVE_SECONDS,
    ),
    "submitted_twice": Fault(
        "the command twice at once, then two more supervisors in the queue",
        submit_twice,
        ends_attempts=0,
    ),
}


@dataclass(frozen=True)
class Endured:
    """One fault and what came of it.

    Attributes:
        kind: key of `FAULTS`.
        detection_seconds: until the attempt's end was recorded, or Slurm took the job from its
            nodes; None where nothing had to be noticed.
        recovery_seconds: until the next step of a new attempt was recorded; of the same attempt
            where nothing had to end.
        lost_steps: that were trained again.
    """

    kind: str
    detection_seconds: float | None
    recovery_seconds: float
    lost_steps: int


def endure(run: WatchedRun, kind: str, rng: random.Random) -> Endured:
    """Let one fault happen to a run that trains, and wait until it trains again.

    Raises:
        RuntimeError: it does not, or a fault that must end nothing ends the attempt.
    """
    fault = FAULTS[kind]
    wait_until(lambda: run.job_seconds() >= fault.after_seconds, "the job to be older")
    attempt, before = len(read_attempts(run.directory)), run.newest_record()["step"]
    struck = time.time()
    mend = fault.strike(run, rng)
    if fault.ends_attempts == 0:
        wait_until(lambda: run.newest_record()["step"] >= before + HARMLESS_STEPS, f"{kind}: steps")
        if len(read_attempts(run.directory)) != attempt:
            raise RuntimeError(f"{kind}: attempt {attempt} ended")
        mend()
        return Endured(kind, None, run.newest_record()["time"] - struck, 0)
    first, attempt, job = attempt, attempt + fault.ends_attempts - 1, run.job()
    wait_until(lambda: _has_noticed(run, attempt, job), f"{kind}: the end of attempt {attempt}")
    detected = time.time()
    mend()
    wait_until(lambda: run.newest_record()["attempt"] > attempt, f"{kind}: a new attempt's step")
    recovered = run.newest_record()["time"]
    lost_steps = _lost_steps(run, first, attempt)
    return Endured(kind, detected - struck, recovered - struck, lost_steps)


def _has_noticed(run: WatchedRun, number: int, job: str) -> bool:
    attempts = read_attempts(run.directory)
    if attempts[-1].next == "give_up":
        raise RuntimeError(f"attempt {attempts[-1].number}: {attempts[-1].reason}")
    return (
        len(attempts) > number
        or attempts[-1].outcome is not None
        or (attempts[-1].job == job and run.field("JobState") not in ("RUNNING", ""))
    )


def _lost_steps(run: WatchedRun, first: int, last: int) -> int:
    """Steps trained in attempts ``first`` to ``last`` that a later one began again."""
    steps = {attempt: found for attempt, found in run.samples().items() if found}
    done = max((max(steps[attempt]) for attempt in steps if first <= attempt <= last), default=-1)
    return max(0, done + 1 - min(min(steps[attempt]) for attempt in steps if attempt > last))
