"""What the supervisor makes of deaths on a real Slurm cluster of two nodes, with fake ranks."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from fake_project import FakeProject
from private_cluster import PrivateCluster

from launch.ledger import Attempt, read_attempts
from launch.look_after.why import explain, text
from launch.submit import read_job
from launch.supervise.nodes import excluded, excluded_nodes
from pretrain.run_directory import RunDirectory

SLURM = ("--cluster", "slurm")
NODES = ("127.0.0.2", "127.0.0.3")

pytestmark = pytest.mark.slow


@pytest.fixture
def project(slurm: Path, tmp_path: Path) -> Iterator[FakeProject]:
    yield from make_project(tmp_path, nodes=2)


@pytest.fixture
def small_project(slurm: Path, tmp_path: Path) -> Iterator[FakeProject]:
    """Jobs of one node, so that another is left when one is excluded."""
    yield from make_project(tmp_path, nodes=1)


def make_project(path: Path, nodes: int) -> Iterator[FakeProject]:
    made = FakeProject(path, nodes=nodes)
    site = made.root / "configs" / "clusters" / "slurm.yaml"
    site.write_text("executor: slurm\npartition: main\ntime_limit_minutes: 20\n")
    yield made
    for run in made.runs.glob("*"):
        job = read_job(RunDirectory(run))
        if job is not None:
            subprocess.run(["scancel", job.job_id], check=False, capture_output=True)
            wait_until(lambda job=job: not in_queue(job.job_id), "the job to be gone")


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.1)


def in_queue(job_id: str) -> bool:
    answer = subprocess.run(
        ["squeue", "-h", "-j", job_id], capture_output=True, text=True, check=False
    )
    return bool(answer.stdout.strip())


def field(job_id: str, name: str) -> str:
    command = ["scontrol", "-o", "show", "job", job_id]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(word.partition("=")[::2] for word in answer.stdout.split())[name]


def launched(project: FakeProject, *arguments: str) -> tuple[RunDirectory, str]:
    code, output = project.launch("--config", "first", *SLURM, *arguments)
    assert code == 0, output
    run = RunDirectory(project.runs / "first")
    job = read_job(run)
    assert job is not None
    return run, job.job_id


def release(job_id: str) -> None:
    """Spare the two minutes for which Slurm holds a job that was requeued."""
    wait_until(lambda: field(job_id, "JobState") == "PENDING", "the job to be requeued")
    time.sleep(2.5)  # released at once, Slurm fails the job for its revoked credential
    subprocess.run(["scontrol", "update", f"jobid={job_id}", "StartTime=now"], check=True)


def step_of(run: RunDirectory) -> int:
    return (run.read_progress() or {}).get("step", 0)


def first_attempt(run: RunDirectory) -> Attempt:
    wait_until(lambda: read_attempts(run) and read_attempts(run)[0].next, "the first end")
    return read_attempts(run)[0]


def done(run: RunDirectory) -> bool:
    return bool(read_attempts(run)) and read_attempts(run)[-1].outcome == "done"


def test_a_stopped_rank_is_named_with_its_node(project: FakeProject) -> None:
    project.set_ranks(40, "freeze:2:25", watchdog_seconds=4)
    run, _ = launched(project)
    first = first_attempt(run)
    assert (first.cause, first.next) == ("rank_hung", "restart"), first
    assert (first.culprit_rank, first.culprit_node) == (2, "127.0.0.3")
    assert (first.phase, first.last_step, first.lost_steps) == ("step", 24, 4)
    assert first.nodes == NODES
    wait_until(lambda: done(run), "the run to be done")
    assert "first: done" in text(explain(run))


def test_a_node_set_down_is_the_cause(project: FakeProject) -> None:
    project.set_ranks(10_000, step_seconds=0.02)
    run, job_id = launched(project)
    wait_until(lambda: step_of(run) >= 3, "steps")
    update = ["scontrol", "update", "nodename=127.0.0.3"]
    subprocess.run([*update, "state=down", "reason=test"], check=True)
    try:
        first = first_attempt(run)
        assert (first.outcome, first.cause, first.next) == ("stopped", "node_lost", "stop"), first
        assert first.lost_steps == 0
    finally:
        subprocess.run([*update, "state=resume"], check=False)
    assert explain(run).state in ("waiting", "running")
    release(job_id)
    wait_until(lambda: len(read_attempts(run)) == 2, "the second attempt")
    assert read_attempts(run)[1].restarts == 1


def test_a_node_that_vanishes_is_the_cause(project: FakeProject, cluster: PrivateCluster) -> None:
    """Its slurmd, the step's daemon and the ranks are killed, as when a machine dies."""
    project.set_ranks(10_000, step_seconds=0.02)
    run, job_id = launched(project)
    wait_until(lambda: step_of(run) >= 3, "steps")
    cluster.kill_node("127.0.0.3")
    try:
        wait_until(lambda: field(job_id, "JobState") == "PENDING", "the job to be requeued")
    finally:
        cluster.start_node("127.0.0.3")
    release(job_id)
    wait_until(lambda: len(read_attempts(run)) == 2, "the second attempt")
    first, second = read_attempts(run)
    # Its ranks waited for the dead until Slurm killed all, supervisor included.
    assert (first.outcome, first.cause, first.culprit_node) == (None, "node_lost", "127.0.0.3")
    assert "node failure" in first.reason
    assert first.last_step is not None
    assert first.lost_steps == first.last_step - (second.checkpoint_step_before or 0)
    wait_until(lambda: step_of(run) > (second.checkpoint_step_before or 0), "further steps")


def test_an_unfit_node_is_excluded_and_the_run_goes_on_elsewhere(
    small_project: FakeProject,
) -> None:
    small_project.set_ranks(20, "bad_node:1:0")
    run, job_id = launched(small_project)
    first = first_attempt(run)
    assert (first.cause, first.next) == ("bad_node", "requeue"), first
    assert (first.culprit_rank, first.culprit_node) == (1, first.nodes[0])
    wait_until(lambda: excluded_nodes(run) == list(first.nodes), "the node to be excluded")
    assert "a matrix product is wrong" in excluded(run)[0].why
    wait_until(lambda: field(job_id, "ExcNodeList") == first.nodes[0], "Slurm to exclude it")
    release(job_id)
    wait_until(lambda: done(run), "the run to be done")
    second = read_attempts(run)[1]
    assert second.nodes == tuple(node for node in NODES if node != first.nodes[0])
    assert second.job == first.job


def test_where_no_node_is_left_the_run_says_so(project: FakeProject) -> None:
    project.set_ranks(20, "bad_node:2:0:99")
    run, job_id = launched(project)
    first = first_attempt(run)
    assert (first.cause, first.next) == ("bad_node", "give_up")
    assert "127.0.0.3 cannot be excluded" in first.reason
    wait_until(lambda: field(job_id, "JobState") == "FAILED", "the job to fail")
    explained = explain(run)
    assert (explained.state, explained.cause, explained.node) == ("failed", "bad_node", NODES[1])
    assert run.failure_path.read_text() == text(explained) + "\n"
    assert excluded_nodes(run) == []


def test_where_requeueing_is_forbidden_another_job_goes_on(project: FakeProject) -> None:
    project.set_ranks(10_000, step_seconds=0.02)
    code, output = project.launch("--config", "both", *SLURM)
    assert code == 0, output
    run, child = (RunDirectory(project.runs / name) for name in ("first", "second"))
    job, waiting = read_job(run), read_job(child)
    assert job is not None
    assert waiting is not None
    wait_until(lambda: step_of(run) >= 3, "steps")
    subprocess.run(["scontrol", "update", f"jobid={job.job_id}", "Requeue=0"], check=True)
    subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)
    first = first_attempt(run)
    wait_until(lambda: read_attempts(run)[0].next == "resubmit", "another job")
    first = read_attempts(run)[0]
    assert (first.outcome, first.cause) == ("stopped", "stop_signal")
    assert "does not requeue" in first.reason
    wait_until(lambda: len(read_attempts(run)) == 2, "the second attempt")
    second, after = read_attempts(run)[1], read_job(run)
    assert after is not None
    assert second.job == after.job_id != job.job_id
    assert second.checkpoint_step_before == first.checkpoint_step_after
    assert f"afterok:{after.job_id}" in field(waiting.job_id, "Dependency")
    subprocess.run(["scancel", waiting.job_id], check=True)


def test_the_same_step_again_fails_and_is_explained(project: FakeProject) -> None:
    project.set_ranks(40, "inch:0:25:99")
    run, job_id = launched(project)
    wait_until(lambda: field(job_id, "JobState") == "FAILED", "the job to fail")
    assert [attempt.cause for attempt in read_attempts(run)] == ["rank_died"] * 3
    explained = explain(run)
    assert (explained.state, explained.rank, explained.last_step) == ("failed", 0, 24)
    assert any("3 attempts in a row ended at step 24" in line for line in explained.details)
    assert any("planned again at step 25" in line for line in explained.details)
