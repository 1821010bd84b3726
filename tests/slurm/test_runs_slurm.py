"""Runs in a real Slurm cluster looked after as typed, with fake ranks."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from fake_project import FakeProject, processes_of

from launch.ledger import read_attempts
from launch.scheduler import job_states
from launch.submit import read_job
from pretrain.run_directory import RunDirectory

SLURM = ("--cluster", "slurm")


@pytest.fixture
def project(slurm: Path, tmp_path: Path) -> Iterator[FakeProject]:
    made = FakeProject(tmp_path, nodes=2)
    site = made.root / "configs" / "clusters" / "slurm.yaml"
    site.write_text("executor: slurm\npartition: main\ntime_limit_minutes: 20\n")
    made.set_ranks(100_000, step_seconds=0.02)
    yield made
    for path in made.runs.glob("*"):
        made.look_after("stop", path.name, "--now", "--no-wait")


def begin(project: FakeProject, *arguments: str, name: str = "first") -> RunDirectory:
    code, output = project.launch("--config", "first", *SLURM, "--name", name, *arguments)
    assert code == 0, output
    return RunDirectory(project.runs / name)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.1)


def step_of(run: RunDirectory) -> int:
    return (run.read_progress() or {}).get("step", 0)


def slurm_says(run: RunDirectory) -> str:
    job = read_job(run)
    assert job is not None
    return job_states([job.job_id])[job.job_id].state


@pytest.mark.slow
def test_a_running_and_a_pending_job_are_shown_and_stopped(project: FakeProject) -> None:
    run = begin(project)
    # Both nodes as a whole, which the first run has.
    waiting = begin(project, "cluster.cpus_per_rank=4", name="waiting")
    wait_until(lambda: step_of(run) >= 3, "steps")
    wait_until(lambda: slurm_says(waiting) == "PENDING", "the second job to wait")

    code, output = project.look_after("list", "--json")
    found = {item["name"]: item for item in json.loads(output)["runs"]}
    assert (found["first"]["state"], found["waiting"]["state"]) == ("running", "waiting")
    assert found["first"]["nodes"] == ["127.0.0.2", "127.0.0.3"]
    assert found["waiting"]["detail"].startswith("pending (")
    code, output = project.look_after("status", "first")
    assert "127.0.0.2, 127.0.0.3" in output
    code, output = project.look_after("logs", "first", "--rank", "3")
    assert "rank 3 of 4" in output

    follower = project.start("follow", "first", program="runs.py")
    assert follower.stdout is not None
    while "training step" not in follower.stdout.readline():
        pass
    follower.send_signal(signal.SIGINT)
    output, _ = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert "python launch/runs.py stop first" in output
    assert slurm_says(run) == "RUNNING"

    code, output = project.look_after("stop", "waiting")
    assert (code, slurm_says(waiting)) == (0, "CANCELLED"), output
    code, output = project.look_after("stop", "first")
    assert code == 0, output
    saved = run.newest_checkpoint_step()
    assert f"first: saved at step {saved:,}; nothing is to be done again" in output
    assert saved == step_of(run)
    (attempt,) = read_attempts(run)
    assert (attempt.outcome, attempt.next) == ("stopped", "stop")
    assert slurm_says(run) == "FAILED", "neither requeued nor taken for done"
    wait_until(lambda: not processes_of(run.path), f"processes to end: {processes_of(run.path)}")
    code, output = project.look_after("list", "--json")
    assert {item["state"] for item in json.loads(output)["runs"]} == {"stopped"}


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_other_nodes(project: FakeProject) -> None:
    run = begin(project)
    wait_until(lambda: step_of(run) >= 3, "steps")
    assert project.look_after("stop", "first")[0] == 0
    saved = run.newest_checkpoint_step()
    code, output = project.look_after("resume", "first", "cluster.nodes=1")
    assert code == 0, output
    assert "2 = 1 node x 2" in output
    assert f"first: goes on from step {saved}" in output
    code, output = project.look_after("resume", "first", "cluster.nodes=1")
    assert "already active as job" in output
    wait_until(lambda: step_of(run) > (saved or 0) + 3, "further steps")
    assert f"rank 1 of 2 from step {saved}" in run.rank_log(2, 1).read_text()
    assert not run.rank_log(2, 2).exists()

    # A supervisor that cannot answer: its job is cancelled, and nothing stays.
    for pid, command in processes_of(run.path).items():
        if "submitit.core._submit" in command:
            os.kill(pid, signal.SIGSTOP)
    code, output = project.look_after("stop", "first", "--now")
    assert code == 0, output
    wait_until(lambda: not processes_of(run.path), f"processes to end: {processes_of(run.path)}")
    assert slurm_says(run) in ("CANCELLED", "FAILED")


@pytest.mark.slow
def test_the_elements_of_an_array_are_stopped_one_by_one(project: FakeProject) -> None:
    sweep = ("--sweep", "seed=0,1,2", "--max-concurrent", "1", "cluster.nodes=1")
    code, output = project.launch("--config", "first", *SLURM, *sweep)
    assert code == 0, output
    runs = [RunDirectory(project.runs / f"first--seed={seed}") for seed in range(3)]
    wait_until(lambda: step_of(runs[0]) >= 3, "steps")
    code, output = project.look_after("list", "--json")
    states = {item["name"]: item["state"] for item in json.loads(output)["runs"]}
    assert [states[run.path.name] for run in runs] == ["running", "waiting", "waiting"]
    for run in (runs[2], runs[0]):
        code, output = project.look_after("stop", run.path.name)
        assert code == 0, output
    code, output = project.look_after("status", runs[2].path.name)
    assert "stopped: job" in output
    assert read_attempts(runs[2]) == []
    assert runs[0].newest_checkpoint_step() == step_of(runs[0])
    wait_until(lambda: step_of(runs[1]) >= 3, "the one between, which was left alone")
