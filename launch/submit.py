"""Handing runs to submitit: one supervisor per job, on this machine or in Slurm's queue."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from launch.script import (
    JobSpec,
    last_line,
    render,
    slurm_executor,
    spec_of,
    submission_environment,
)
from launch.supervise.supervisor import layout_of, run_job
from pretrain.errors import LaunchError
from pretrain.files import make_private, read_json, replace_text
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import start_ticks

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
        cancelled_time: when it was taken out of Slurm's queue on request; None otherwise.
    """

    executor: Literal["local", "slurm"]
    job_id: str
    host: str
    time: float
    log: str
    ticks: int | None = None
    cancelled_time: float | None = None


def write_job(run: RunDirectory, job: Job) -> None:
    """Record which job has a run."""
    replace_text(run.job_path, json.dumps(asdict(job)) + "\n")


def read_job(run: RunDirectory) -> Job | None:
    """The job last submitted for a run; None before the first."""
    record = read_json(run.job_path)
    try:
        return Job(**record) if record else None
    except TypeError:
        raise LaunchError(f"{run.job_path}: damaged; remove it and launch again") from None


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
    make_private(first.submitit_dir)
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
        said = last_line(log_path.read_text(encoding="utf-8", errors="replace"))
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
    spec = spec_of(run, run.read_config(), layout_of(run).ranks_per_node, after, follows)
    (job,) = submit_array([run], spec, command=command)
    return job


def submit_array(
    runs: Sequence[RunDirectory], spec: JobSpec, *, command: Sequence[str] | None = None
) -> list[Job]:
    """Put runs into Slurm's queue as the elements of one job array; a single one as a plain job.

    Each element is a supervisor of its own, which Slurm starts, stops and requeues by itself.

    Args:
        runs: created run directories, at least one.
        spec: the job; ``spec.directory`` holds the source that the supervisors execute.
        command: what every rank runs; None is the trainer.

    Returns:
        The job of each run, as also written to its ``job.json``.

    Raises:
        LaunchError: Slurm refuses the job.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    make_private(spec.folder)
    executor = slurm_executor(spec)
    for name in os.environ.keys() - submission_environment(render(spec), os.environ).keys():
        del os.environ[name]  # submitit hands on what this process has
    paths = [[str(run.path)] for run in runs]
    commands = [list(command) if command else None] * len(paths)
    try:
        submitted = executor.map_array(run_job, paths, commands)
    except (FailedJobError, FailedSubmissionError) as error:
        raise LaunchError(f"sbatch refuses the job: {last_line(str(error))}") from None
    host, now = os.uname().nodename, time.time()
    jobs = [Job("slurm", one.job_id, host, now, str(one.paths.stdout)) for one in submitted]
    for run, job in zip(runs, jobs, strict=True):
        write_job(run, job)
    return jobs


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
        write_job(run, job)


if __name__ == "__main__":
    _start_controller(*json.loads(sys.argv[1]))
