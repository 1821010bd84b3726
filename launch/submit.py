"""Handing runs to submitit: one supervisor per job, on this machine or in Slurm's queue."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from launch.nodes import excluded_nodes
from launch.supervisor import layout_of, run_job
from pretrain.config.schema import RunConfig
from pretrain.errors import LaunchError
from pretrain.files import read_json, replace_text
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import start_ticks

if TYPE_CHECKING:
    from submitit import SlurmExecutor

SHORTEST_JOB_MINUTES = 10
"""A job must outlive start-up, the lead above, and Slurm's rounding of a minute."""
LOCAL_LIMIT_MINUTES = 366 * 24 * 60
"""submitit's local executor insists on a limit."""


@dataclass(frozen=True)
class Job:
    """The submitted job that has a run, as kept in ``job.json``.

    Attributes:
        executor: who runs it.
        job_id: Slurm's, or the process id of submitit's local controller.
        host: where it was submitted.
        time: when, unix seconds.
        log: what the supervisor prints.
        ticks: start of the local controller in clock ticks; None under Slurm.
    """

    executor: Literal["local", "slurm"]
    job_id: str
    host: str
    time: float
    log: str
    ticks: int | None = None


def read_job(run: RunDirectory) -> Job | None:
    """The job last submitted for a run; None before the first."""
    record = read_json(run.job_path)
    try:
        return Job(**record) if record else None
    except TypeError:
        raise LaunchError(f"{run.job_path}: damaged; remove it and launch again") from None


def check_slurm(config: RunConfig) -> None:
    """Refuse what Slurm would take amiss. Writes nothing.

    Raises:
        LaunchError: a path that an sbatch script cannot hold, or a time limit that leaves no time.
    """
    path = str(Path(config.runs_dir) / config.name)
    if any(ord(character) < 32 or character in "%\\'\"" for character in path):
        raise LaunchError(
            f"runs_dir: {path!r}: an sbatch script cannot hold control characters, quotes, "
            "backslashes or '%' in a path; give runs_dir=PATH"
        )
    limit = config.cluster.time_limit_minutes
    if limit is not None and limit < SHORTEST_JOB_MINUTES:
        raise LaunchError(
            f"cluster.time_limit_minutes: expected at least {SHORTEST_JOB_MINUTES} (ranks are told "
            f"to save {config.cluster.signal_lead_seconds} s before the end), got {limit}"
        )


def submit_local(
    runs: Sequence[RunDirectory],
    *,
    waits_for: Sequence[RunDirectory] = (),
    command: Sequence[str] | None = None,
) -> Job:
    """Start one job on this machine that takes the runs in turn, and return at once.

    A short-lived process in a session of its own does it, from the copied source: neither Ctrl-C
    nor the end of this process reaches the job.

    Args:
        runs: created run directories, at least one.
        waits_for: runs that other jobs have and that must come to their end first.
        command: what every rank runs; None is the trainer.

    Raises:
        LaunchError: the job did not start.
    """
    first = runs[0]
    first.submitit_dir.mkdir(mode=0o700, exist_ok=True)
    paths = [[str(run.path) for run in group] for group in (waits_for, runs)]
    arguments = json.dumps([*paths, list(command) if command else None])
    program = [sys.executable, "-m", "launch.submit", arguments]
    setup = first.read_config().cluster.setup
    if setup:
        program = ["bash", "-c", "\n".join([*setup, f"exec {shlex.join(program)}"])]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SUBMITIT_"))}
    log_path = first.submitit_dir / "submit.log"
    with log_path.open("wb") as log:
        answer = subprocess.run(
            program,
            cwd=first.code_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,  # no pipe: the controller inherits it and would keep it open
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
        )
    if answer.returncode != 0:
        said = _last_line(log_path.read_text(encoding="utf-8", errors="replace"))
        raise LaunchError(f"the job did not start: {said}; all of it is in {log_path}")
    job = read_job(first)
    if job is None:
        raise LaunchError(f"{first.job_path}: vanished; launch again")
    return job


def submit_slurm(
    run: RunDirectory,
    *,
    after: Sequence[str] = (),
    follows: str | None = None,
    command: Sequence[str] | None = None,
) -> Job:
    """Put one run into Slurm's queue.

    Args:
        run: created run directory.
        after: jobs that must succeed first; if one fails, this job is removed.
        follows: a job that must have ended first, in whatever way.
        command: what every rank runs; None is the trainer.

    Raises:
        LaunchError: Slurm refuses the job.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    run.submitit_dir.mkdir(mode=0o700, exist_ok=True)
    ranks_per_node = layout_of(run).ranks_per_node
    executor = _slurm_executor(run, run.read_config(), ranks_per_node, after, follows)
    _leave_allocation()
    try:
        submitted = executor.submit(run_job, [str(run.path)], list(command) if command else None)
    except (FailedJobError, FailedSubmissionError) as error:
        raise LaunchError(f"sbatch refuses the job: {_last_line(str(error))}") from None
    log = str(submitted.paths.stdout)
    job = Job("slurm", submitted.job_id, os.uname().nodename, time.time(), log)
    replace_text(run.job_path, json.dumps(asdict(job)) + "\n")
    return job


def sbatch_script(config: RunConfig, ranks_per_node: int, after: Sequence[str] = ()) -> str:
    """The script that `submit_slurm` would submit. Writes nothing."""
    run = RunDirectory(Path(config.runs_dir) / config.name)
    executor = _slurm_executor(run, config, ranks_per_node, after)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


class Answer(NamedTuple):
    """What ``sbatch --test-only`` says of a script.

    Attributes:
        accepted: whether Slurm would take it.
        text: an estimated start, or the refusal.
    """

    accepted: bool
    text: str


def ask_slurm(script: str) -> Answer:
    """Ask ``sbatch --test-only`` about a script. Submits nothing."""
    answer = subprocess.run(
        ["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False
    )
    return Answer(answer.returncode == 0, _last_line(answer.stdout + answer.stderr))


def _slurm_executor(
    run: RunDirectory,
    config: RunConfig,
    ranks_per_node: int,
    after: Sequence[str],
    follows: str | None = None,
) -> "SlurmExecutor":
    from submitit import SlurmExecutor

    cluster = config.cluster
    try:
        # exec: the batch process itself must be the supervisor, or Slurm kills only the shell.
        executor = SlurmExecutor(run.submitit_dir, python=f"exec {shlex.quote(sys.executable)}")
    except RuntimeError as error:
        raise LaunchError(f"cluster.executor: slurm: {error}") from None
    memory = cluster.memory_gib_per_node
    excluded = [*filter(None, [cluster.exclude]), *excluded_nodes(run)]
    dependency = "afterok:" + ":".join(after) if after else None
    if follows is not None:
        dependency = f"afterany:{follows}"
    executor.update_parameters(
        job_name=config.name,
        nodes=cluster.nodes,
        ntasks_per_node=ranks_per_node,
        gpus_per_node=None if cluster.device == "cpu" else cluster.gpus_per_node or None,
        cpus_per_task=cluster.cpus_per_rank,
        mem=None if memory is None else f"{memory}G",
        time=cluster.time_limit_minutes,
        partition=cluster.partition,
        account=cluster.account,
        qos=cluster.qos,
        constraint=cluster.constraint,
        exclude=",".join(excluded) or None,
        setup=list(cluster.setup) or None,
        dependency=dependency,
        signal_delay_s=cluster.signal_lead_seconds,
        stderr_to_stdout=True,
        use_srun=False,
        wckey=None,
        # Requeueing must be asked for where the site's default forbids it.
        additional_parameters={
            "requeue": True,
            "chdir": str(run.code_path),
            "kill-on-invalid-dep": "yes",
        },
    )
    return executor


def _leave_allocation() -> None:
    """Forget a surrounding allocation, whose shape sbatch would give to the new job."""
    for name in list(os.environ):
        if name.startswith("SLURM_") and name != "SLURM_CONF":
            del os.environ[name]


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")


def _start_controller(
    before: Sequence[str], paths: Sequence[str], command: Sequence[str] | None
) -> None:
    """Start submitit's controller from this process, which ends right after."""
    from submitit import LocalExecutor

    # submitit hides the GPUs it was not asked to hand out; the ranks see what the user sees.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    change = (
        ["-u", "CUDA_VISIBLE_DEVICES"] if visible is None else [f"CUDA_VISIBLE_DEVICES={visible}"]
    )
    runs = [RunDirectory(path) for path in paths]
    executor = LocalExecutor(
        runs[0].submitit_dir, python=shlex.join(["env", *change, sys.executable])
    )
    executor.update_parameters(
        timeout_min=LOCAL_LIMIT_MINUTES, tasks_per_node=1, stderr_to_stdout=True
    )
    submitted = executor.submit(run_job, [*before, *paths], command)
    job = Job(
        executor="local",
        job_id=submitted.job_id,
        host=os.uname().nodename,
        time=time.time(),
        log=str(submitted.paths.stdout),
        ticks=start_ticks(int(submitted.job_id)),
    )
    for run in runs:
        replace_text(run.job_path, json.dumps(asdict(job)) + "\n")


if __name__ == "__main__":
    _start_controller(*json.loads(sys.argv[1]))
