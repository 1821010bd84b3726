"""Asking Slurm: whether it is there, where a job stands, to put a job back into the queue."""

import os
import shutil
import socket
import subprocess
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
    """

    state: str
    reason: str
    start: str


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
    )


def requeue(job_id: str) -> str | None:
    """Put this running job back into the queue; None on success, else Slurm's refusal."""
    answer = _run(["scontrol", "requeue", job_id])
    return None if answer.returncode == 0 else answer.stderr.strip() or "scontrol requeue failed"


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
