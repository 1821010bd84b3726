"""Asking Slurm: whether it is there, where a job stands, to put a job back into the queue."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pretrain.errors import LaunchError

QUERY_TIMEOUT_SECONDS = 60
CONTROLLER_SECONDS = 900.0
"""Time for a controller that restarts, or its successor, to answer again."""
CONTROLLER_POLL_SECONDS = 3.0
EXCLUDE_SECONDS = 20.0
"""Time for Slurm to take a job back into the queue."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING"})
RUNNING = frozenset({"RUNNING", "SUSPENDED", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING"})


@dataclass(frozen=True)
class JobState:
    """Where a job stands.

    Attributes:
        state: Slurm's word, such as ``PENDING``.
        reason: why it waits, in Slurm's word.
        start: when it started or is expected to, as Slurm prints it.
        end: when it ends at the latest, as Slurm prints it.
        restarts: times it was put back into the queue, the one under way included.
        preempted: whether it has been told to make room.
        partition: where it runs.
        excluded: nodes it does not take, in Slurm's list syntax.
    """

    state: str
    reason: str
    start: str
    end: str = ""
    restarts: int = 0
    preempted: bool = False
    partition: str = ""
    excluded: str = ""

    def seconds_left(self, now: float) -> float | None:
        """Seconds until its time limit; None without one."""
        try:
            return time.mktime(time.strptime(self.end, "%Y-%m-%dT%H:%M:%S")) - now
        except ValueError:
            return None


def why_no_slurm() -> str | None:
    """None where Slurm can be used from here, else the reason in a few words."""
    if shutil.which("sbatch") is None:
        return "sbatch is not on PATH"
    if shutil.which("scontrol") is None:
        return "scontrol is not on PATH"
    try:
        answer = _run(["scontrol", "ping"])
    except LaunchError as error:
        return str(error)
    # Exit code 0 with every controller down has been seen; the text tells.
    if answer.returncode != 0 or " is UP" not in answer.stdout:
        return "no Slurm controller answers (scontrol ping)"
    return None


def job_state(job_id: str) -> JobState | None:
    """The state of a job, None once Slurm has forgotten it.

    Raises:
        LaunchError: Slurm does not answer; nothing is known then.
    """
    answer = _run(["scontrol", "-o", "show", "job", job_id])
    if answer.returncode != 0:
        # The second is said, elsewhere, of an element of an array whose others are known.
        if "Invalid job id" in answer.stderr or "not found" in answer.stdout:
            return None
        raise LaunchError(f"scontrol show job {job_id}: {answer.stderr.strip() or 'failed'}")
    fields = _fields(answer.stdout)
    return JobState(
        state=fields.get("JobState", "UNKNOWN"),
        reason=fields.get("Reason", ""),
        start=fields.get("StartTime", ""),
        end=fields.get("EndTime", ""),
        restarts=int(fields.get("Restarts", "0")),
        preempted=fields.get("PreemptTime", "None") != "None",
        partition=fields.get("Partition", ""),
        excluded=fields.get("ExcNodeList", "").replace("(null)", ""),
    )


def patient_job_state(job_id: str, give_up: Callable[[], bool]) -> JobState | None:
    """`job_state`, asked again for as long as no controller answers.

    Args:
        job_id: Slurm's.
        give_up: whether to ask no more.

    Raises:
        LaunchError: Slurm did not answer until `CONTROLLER_SECONDS`, or ``give_up``.
    """
    deadline = time.monotonic() + CONTROLLER_SECONDS
    while True:
        try:
            return job_state(job_id)
        except LaunchError:
            if give_up() or time.monotonic() > deadline:
                raise
        time.sleep(CONTROLLER_POLL_SECONDS)


def requeue(job_id: str) -> str | None:
    """Put this running job back into the queue; None on success, else Slurm's refusal."""
    answer = _run(["scontrol", "requeue", job_id])
    return None if answer.returncode == 0 else answer.stderr.strip() or "scontrol requeue failed"


def exclude(job_id: str, nodes: Sequence[str]) -> str | None:
    """Keep a job that is going back into the queue off these nodes, and off no others.

    A running job cannot be changed. After `requeue` its batch process, if it ignores SIGTERM, lives
    for some seconds in which it can.

    Returns:
        None on success, else Slurm's refusal.
    """
    deadline = time.monotonic() + EXCLUDE_SECONDS
    while True:
        answer = _run(["scontrol", "update", f"jobid={job_id}", f"ExcNodeList={','.join(nodes)}"])
        if answer.returncode == 0:
            return None
        if time.monotonic() > deadline:
            return answer.stderr.strip() or "scontrol update failed"
        time.sleep(0.2)


def node_names(nodes: str) -> tuple[str, ...]:
    """The names in Slurm's list syntax, in order.

    Raises:
        LaunchError: Slurm does not understand it.
    """
    if not nodes:
        return ()
    answer = _run(["scontrol", "show", "hostnames", nodes])
    if answer.returncode != 0:
        raise LaunchError(f"scontrol show hostnames {nodes}: {answer.stderr.strip() or 'failed'}")
    return tuple(answer.stdout.split())


def unusable_nodes(nodes: Sequence[str]) -> dict[str, str]:
    """Those of the nodes that are down, drained or silent, and Slurm's word for it."""
    answer = _run(["scontrol", "-o", "show", "node", ",".join(nodes)]) if nodes else None
    states: dict[str, str] = {}
    for line in answer.stdout.splitlines() if answer else []:
        fields = _fields(line)
        state = fields.get("State", "")
        if any(word in state for word in ("DOWN", "NOT_RESPONDING", "FAIL")):
            states[fields.get("NodeName", "")] = state
    return states


def partition_nodes(partition: str) -> set[str]:
    """Names of the nodes of a partition; empty where Slurm does not tell."""
    command = ["sinfo", "--noheader", "--Node", "--format=%N"]
    answer = _run([*command, f"--partition={partition}"] if partition else command)
    return set(answer.stdout.split()) if answer.returncode == 0 else set()


def kill_wait_seconds() -> int | None:
    """Time between SIGTERM and SIGKILL at a preemption without grace; None where not told."""
    answer = _run(["scontrol", "show", "config"])
    found = re.search(r"^KillWait\s*=\s*(\d+)", answer.stdout, re.MULTILINE)
    return int(found[1]) if found else None


def move_dependents(old_job_id: str, new_job_id: str) -> list[str]:
    """Let the jobs that wait for one wait for another instead; return those that Slurm refused."""
    answer = _run(["squeue", "--me", "--noheader", "--states=PENDING", "--format=%A %E"])
    refused = []
    for line in answer.stdout.splitlines():
        job_id, _, dependency = line.partition(" ")
        moved = re.sub(rf"\b{re.escape(old_job_id)}\b(\(\w+\))?", new_job_id, dependency)
        if moved == dependency or job_id == new_job_id:
            continue
        moved = re.sub(r"\(\w+\)", "", moved)  # squeue adds the state of each
        if _run(["scontrol", "update", f"jobid={job_id}", f"Dependency={moved}"]).returncode:
            refused.append(job_id)
    return refused


def job_states(job_ids: Collection[str]) -> dict[str, JobState]:
    """The states of many jobs, from one question; those Slurm has forgotten are left out.

    Raises:
        LaunchError: Slurm does not answer; nothing is known then.
    """
    if not job_ids:
        return {}
    # Each element of an array on a line of its own, however its job ended.
    answer = _run(
        ["squeue", "-h", "--array", "--states=all", "-o", "%i|%T|%r|%S", "-j", ",".join(job_ids)]
    )
    if answer.returncode != 0:
        if "Invalid job id" in answer.stderr:  # said where a single one is asked for
            return {}
        raise LaunchError(f"squeue: {answer.stderr.strip() or 'failed'}")
    rows = (line.split("|", 3) for line in answer.stdout.splitlines())
    return {row[0]: JobState(row[1], row[2], row[3]) for row in rows if len(row) == 4}


def cancel_pending(job_id: str) -> None:
    """Take a job out of the queue; one that has started is left alone.

    An element of an array that has just started is told to save, as `cancel` tells it: asked for
    pending ones only, Slurm 22.05 cancels every element that waits.

    Raises:
        LaunchError: Slurm refuses.
    """
    _scancel(*([] if "_" in job_id else ["--state=PENDING"]), job_id)


def cancel(job_id: str) -> None:
    """End a job as Slurm does it: SIGTERM to all it runs, and SIGKILL after ``KillWait``.

    Raises:
        LaunchError: Slurm refuses.
    """
    _scancel(job_id)


def signal_batch(job_id: str, name: str) -> None:
    """Send a signal, such as ``TERM``, to the batch process of a job and to nothing else of it.

    Raises:
        LaunchError: Slurm refuses.
    """
    _scancel("--batch", f"--signal={name}", job_id)


def _scancel(*arguments: str) -> None:
    """Run ``scancel``; a job that is over needs nothing, and callers look what became of it."""
    answer = _run(["scancel", *arguments])
    said = answer.stderr.strip()
    over = any(word in said for word in ("Invalid job id", "already completing"))
    # Signals to an element of an array arrive, and it exits 1 without a word (seen in 22.05).
    if answer.returncode != 0 and said and not over:
        raise LaunchError(f"scancel {' '.join(arguments)}: {said}")


def nodes_text(form: str) -> str | None:
    """What ``sinfo`` prints of all partitions, a line for equal nodes; None where it fails.

    Raises:
        LaunchError: Slurm does not answer.
    """
    answer = _run(["sinfo", "--all", "--exact", "--noheader", "--format", form])
    return answer.stdout if answer.returncode == 0 else None


def first_node_address() -> str:
    """The address at which all nodes of this job reach its first one.

    Raises:
        LaunchError: neither the resolver nor Slurm knows it.
    """
    name = node_names(os.environ["SLURM_JOB_NODELIST"])[0]
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror:
        answer = _run(["scontrol", "-o", "show", "node", name])
        fields = _fields(answer.stdout)
        if "NodeAddr" not in fields:
            raise LaunchError(
                f"{name}: the first node of the job does not resolve and Slurm has no address"
            ) from None
        return fields["NodeAddr"]
    return name


def _fields(text: str) -> dict[str, str]:
    """``Key=value`` words as ``scontrol -o`` prints them."""
    parts = (word.partition("=") for word in text.split())
    return {key: value for key, _, value in parts}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{' '.join(command)}: {error}") from None
