"""The whole launcher on a real Slurm cluster of two nodes, with fake ranks."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from fake_project import FakeProject

from launch.ledger import read_attempts
from launch.submit import read_job
from pretrain.run_directory import RunDirectory

SLURM = ("--cluster", "slurm")


@pytest.fixture
def project(slurm: Path, tmp_path: Path) -> FakeProject:
    made = FakeProject(tmp_path, nodes=2)
    site = made.root / "configs" / "clusters" / "slurm.yaml"
    site.write_text("executor: slurm\npartition: main\ntime_limit_minutes: 20\n")
    return made


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.1)


def state(run: RunDirectory) -> str:
    job = read_job(run)
    assert job is not None
    return scontrol_field(job.job_id, "JobState")


def scontrol_field(job_id: str, name: str) -> str:
    command = ["scontrol", "-o", "show", "job", job_id]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(word.partition("=")[::2] for word in answer.stdout.split())[name]


def step_of(run: RunDirectory) -> int:
    return (run.read_progress() or {}).get("step", 0)


def test_submit_follow_and_survive_a_killed_rank(project: FakeProject) -> None:
    project.set_ranks(40, "kill:3:25")
    gpus = ("cluster.gpus_per_node=4", "cluster.device=cuda")
    code, output = project.launch("--config", "first", *SLURM, *gpus, "--follow")
    run = RunDirectory(project.runs / "first")
    assert code == 0, output
    assert "first: submitted as job" in output
    assert "first: done at step 40" in output
    first, second = read_attempts(run)
    assert (first.outcome, first.next, first.culprit_rank) == ("crashed", "restart", 3)
    assert "127.0.0.3" in first.reason
    assert (second.outcome, second.checkpoint_step_before) == ("done", 20)
    log = run.rank_log(2, 3).read_text()
    assert "rank 3 of 4 from step 20" in log
    assert "local 1 of 2" in log
    assert "meet at 127.0.0.2:" in log
    assert "gpus 0,1,2,3" in log
    wait_until(lambda: state(run) == "COMPLETED", "COMPLETED")


@pytest.mark.slow
def test_a_chain_waits_and_is_removed_when_its_parent_fails(project: FakeProject) -> None:
    project.set_ranks(30)
    code, output = project.launch("--config", "both", *SLURM)
    assert code == 0, output
    first, second = (RunDirectory(project.runs / name) for name in ("first", "second"))
    job = read_job(first)
    assert job is not None
    assert f"after job {job.job_id}" in output
    code, output = project.launch("--config", "both", *SLURM, "--follow")
    assert code == 0, output
    assert second.is_done()
    (attempt,) = read_attempts(second)
    progress = first.read_progress()
    assert progress is not None
    assert attempt.start_time > progress["time"]

    project.set_ranks(30, "refuse:2:5:99")
    code, output = project.launch("--config", "both", *SLURM, f"runs_dir={project.runs}2")
    assert code == 0, output
    failed, removed = (RunDirectory(f"{project.runs}2/{name}") for name in ("first", "second"))
    wait_until(lambda: state(failed) == "FAILED", "the parent to fail")
    wait_until(lambda: state(removed) == "CANCELLED", "the child to be removed")
    (attempt,) = read_attempts(failed)
    assert (attempt.outcome, attempt.next, attempt.culprit_rank) == ("bad_input", "give_up", 2)
    assert read_attempts(removed) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "followed_by"),
    [
        # As --signal=USR2@180 does: to the ranks, not to the batch process.
        (["scancel", "--signal=USR2"], "requeue"),
        # As preemption does: Slurm itself puts the job back.
        (["scontrol", "requeue"], "stop"),
    ],
)
def test_a_job_slurm_interrupts_saves_and_goes_on_and_a_cancelled_one_does_not(
    project: FakeProject, event: list[str], followed_by: str
) -> None:
    project.set_ranks(10_000, step_seconds=0.02)
    assert project.launch("--config", "first", *SLURM)[0] == 0
    run = RunDirectory(project.runs / "first")
    job = read_job(run)
    assert job is not None
    wait_until(lambda: step_of(run) >= 3, "steps")
    subprocess.run([*event, job.job_id], check=True)
    wait_until(lambda: state(run) == "PENDING", "the job to be requeued")
    (first,) = read_attempts(run)
    assert (first.outcome, first.next) == ("stopped", followed_by)
    assert first.checkpoint_step_after == step_of(run)
    time.sleep(2.5)  # released at once, Slurm fails the job for its revoked credential
    subprocess.run(["scontrol", "update", f"jobid={job.job_id}", "StartTime=now"], check=True)
    wait_until(lambda: len(read_attempts(run)) == 2, "the second attempt")
    wait_until(lambda: step_of(run) > (first.checkpoint_step_after or 0), "further steps")
    assert f"from step {first.checkpoint_step_after}" in run.rank_log(2, 1).read_text()

    subprocess.run(["scancel", job.job_id], check=True)
    wait_until(lambda: read_attempts(run)[-1].outcome is not None, "the end of the attempt")
    last = read_attempts(run)[-1]
    assert (last.outcome, last.next) == ("stopped", "stop")
    assert run.newest_checkpoint_step() == step_of(run)
    wait_until(lambda: state(run) == "CANCELLED", "CANCELLED")


def test_the_same_command_does_not_submit_twice(project: FakeProject) -> None:
    project.set_ranks(10_000, step_seconds=0.02)
    assert project.launch("--config", "first", *SLURM)[0] == 0
    run = RunDirectory(project.runs / "first")
    job = read_job(run)
    assert job is not None
    # A run that needs no job asks nothing of the cluster.
    code, output = project.launch("--config", "first", *SLURM, "cluster.partition=none")
    assert code == 0
    assert f"already active as job {job.job_id}" in output
    assert read_job(run) == job

    process = project.start("--config", "first", *SLURM, "--follow")
    wait_until(lambda: step_of(run) >= 3, "steps")
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "python launch/runs.py stop first" in output
    assert state(run) == "RUNNING"

    subprocess.run(["scancel", "--batch", "--signal=QUIT", job.job_id], check=True)
    wait_until(lambda: read_attempts(run)[-1].outcome is not None, "the end of the attempt")
    assert (read_attempts(run)[-1].outcome, read_attempts(run)[-1].next) == ("stopped", "stop")
    wait_until(lambda: state(run) == "FAILED", "the job to end")


def test_dry_run_is_accepted_by_sbatch_and_writes_nothing(project: FakeProject) -> None:
    arguments = ("--config", "first", *SLURM, "--dry-run", "cluster.gpus_per_node=4")
    code, output = project.launch(*arguments, "cluster.device=cuda")
    assert code == 0, output
    assert not project.runs.exists()
    script = output[output.index("#!/bin/bash") : output.index("sbatch --test-only")]
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert f"#SBATCH --chdir={project.runs}/first/code" in directives
    for expected in ("--requeue", "--nodes=2", "--time=20", "--gpus-per-node=4"):
        assert f"#SBATCH {expected}" in directives
    assert "to start at" in output[output.index("sbatch --test-only") :]
    command = [line for line in script.splitlines() if line.startswith("exec ")]
    assert len(command) == 1

    code, output = project.launch("--config", "both", *SLURM, "--dry-run", "cluster.device=cpu")
    assert "--gpus-per-node" not in output  # ranks on the CPU take no GPUs
    assert output.count("#!/bin/bash") == 2
    assert output.count("would wait for first (sbatch --dependency=afterok:") == 1
