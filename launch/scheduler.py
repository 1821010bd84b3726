"""Asking Slurm: whether it is there, where a job stands, to put a job back into the queue."""

import os
import shutil
import socket
import subprocess
from collections.abc import Collection
from dataclasses import dataclass

from pretrain.errors import LaunchError

QUERY_TIMEOUT_SECONDS = 60
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING"})
RUNNING = frozenset({"RUNNING", "SUSPENDED", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING"})


@dataclass(frozen=True)
class JobState:
    """Where a job stands.

    Attributes:
        state: Slurm's word, such as ``PENDING``.
        reason: why it waits, in Slurm's word.
        start: when it started or is expected to, as Slurm prints it.
        nodes: those it has, as Slurm writes lists of nodes; empty while it has none.
    """

    state: str
    reason: str
    start: str
    nodes: str = ""


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
        if "Invalid job id" in answer.stderr:
            return None
        raise LaunchError(f"scontrol show job {job_id}: {answer.stderr.strip() or 'failed'}")
    fields = _fields(answer.stdout)
    return JobState(
        state=fields.get("JobState", "UNKNOWN"),
        reason=fields.get("Reason", ""),
        start=fields.get("StartTime", ""),
        nodes=fields.get("NodeList", "").replace("(null)", ""),
    )


def job_states(job_ids: Collection[str]) -> dict[str, JobState]:
    """The states of many jobs, from one question; those Slurm has forgotten are left out.

    Raises:
        LaunchError: Slurm does not answer; nothing is known then.
    """
    if not job_ids:
        return {}
    # Each element of an array on a line of its own, however its job ended.
    answer = _run(
        ["squeue", "-h", "--array", "--states=all", "-o", "%i|%T|%r|%S|%N", "-j", ",".join(job_ids)]
    )
    if answer.returncode != 0:
        if "Invalid job id" in answer.stderr:  # said where a single one is asked for
            return {}
        raise LaunchError(f"squeue: {answer.stderr.strip() or 'failed'}")
    rows = (line.split("|", 4) for line in answer.stdout.splitlines())
    return {row[0]: JobState(*row[1:]) for row in rows if len(row) == 5}


def cancel_pending(job_id: str) -> None:
    """Take a job out of the queue; one that has started is left alone.

    Raises:
        LaunchError: Slurm refuses.
    """
    _scancel("--state=PENDING", job_id)


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
    answer = _run(["scancel", *arguments])
    over = any(word in answer.stderr for word in ("Invalid job id", "already completing"))
    if answer.returncode != 0 and not over:
        raise LaunchError(f"scancel {' '.join(arguments)}: {answer.stderr.strip() or 'failed'}")


def requeue(job_id: str) -> str | None:
    """Put this running job back into the queue; None on success, else Slurm's refusal."""
    answer = _run(["scontrol", "requeue", job_id])
    return None if answer.returncode == 0 else answer.stderr.strip() or "scontrol requeue failed"


def first_node_address() -> str:
    """The address at which all nodes of this job reach its first one.

    Raises:
        LaunchError: neither the resolver nor Slurm knows it.
    """
    nodes = os.environ["SLURM_JOB_NODELIST"]
    answer = _run(["scontrol", "show", "hostnames", nodes])
    name = (answer.stdout.split() or [nodes])[0]
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
