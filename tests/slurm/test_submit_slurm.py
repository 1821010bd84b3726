"""What is submitted, as Slurm itself holds it: every field of a cluster file, arrays, secrets."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from fake_project import FakeProject, open_to_others, plant_canaries, where_canaries_are
from test_launch_slurm import scontrol_field, state, step_of, wait_until

from launch.ledger import read_attempts
from launch.status import Queue, look
from launch.submit import read_job
from pretrain.run_directory import RunDirectory

SLURM = ("--cluster", "slurm")
POINTS = [f"first--optim.lr={lr}--seed={seed}" for lr in ("0.001", "0.002") for seed in (0, 1)]
SITE = "executor: slurm\npartition: main\ntime_limit_minutes: 20\n"


@pytest.fixture
def project(slurm: Path, tmp_path: Path) -> Iterator[FakeProject]:
    made = FakeProject(tmp_path)
    (made.root / "configs" / "clusters" / "slurm.yaml").write_text(SITE)
    yield made
    subprocess.run(["scancel", "--user", str(os.getuid())], check=True)


def job_of(run: RunDirectory) -> str:
    job = read_job(run)
    assert job is not None
    return job.job_id


def script_of(job_id: str) -> str:
    return _output("scontrol", "write", "batch_script", job_id, "-")


@pytest.mark.slow
def test_a_sweep_is_one_array_and_every_point_a_run(project: FakeProject) -> None:
    project.set_ranks(12)
    sweep = ("--sweep", "seed=0,1", "cluster.nodes=1")
    code, output = project.launch("--config", "first", *SLURM, *sweep, "--follow")
    assert code == 0, output
    runs = [RunDirectory(project.runs / f"first--seed={seed}") for seed in (0, 1)]
    array = job_of(runs[0]).removesuffix("_0")
    assert job_of(runs[1]) == f"{array}_1"
    for run in runs:
        assert run.is_done()
        assert [attempt.job for attempt in read_attempts(run)] == [job_of(run)]


@pytest.mark.slow
def test_a_dry_run_shows_the_array_and_a_second_launch_only_what_is_left(
    project: FakeProject,
) -> None:
    project.set_ranks(12)
    sweep = ("--sweep", "seed=0,1", "cluster.nodes=2", "cluster.ranks_per_node=1")
    code, output = project.launch("--config", "first", *SLURM, *sweep, "--dry-run")
    assert code == 0, output
    assert output.count("plan of first--seed=") == 2
    assert output.count("#!/bin/bash") == 1
    for expected in ("--array=0-1%2", "--nodes=2"):
        assert f"#SBATCH {expected}\n" in output
    assert "to start at" in output[output.index("sbatch --test-only") :]
    assert not project.runs.exists()

    code, output = project.launch("--config", "first", *SLURM, *sweep, "cluster.partition=none")
    assert code == 2
    assert output.startswith("error: cluster.partition: none: ")
    assert not project.runs.exists()

    code, output = project.launch(
        "--config", "first", "--name", "first--seed=0", *SLURM, "--follow"
    )
    assert code == 0, output
    code, output = project.launch("--config", "first", *SLURM, "--sweep", "seed=0,1", "--follow")
    assert code == 0, output
    assert output.count("already done") == 1
    assert job_of(RunDirectory(project.runs / "first--seed=1")).isdigit()


@pytest.mark.slow
def test_elements_are_requeued_and_cancelled_one_by_one(project: FakeProject) -> None:
    project.set_ranks(10_000, step_seconds=0.02)
    sweep = ("--sweep", "optim.lr=1e-3,2e-3", "--sweep", "seed=0,1", "--max-concurrent", "3")
    code, output = project.launch("--config", "first", *SLURM, *sweep)
    assert code == 0, output
    runs = [RunDirectory(project.runs / name) for name in POINTS]
    array = job_of(runs[0]).removesuffix("_0")
    assert [job_of(run) for run in runs] == [f"{array}_{index}" for index in range(4)]
    wait_until(lambda: all(step_of(run) >= 3 for run in runs[:3]), "steps of three")
    assert [look(run, Queue()).phase for run in runs] == [*["running"] * 3, "waiting"]
    assert "JobArrayTaskLimit" in look(runs[3], Queue()).detail

    # The time limit's signal: the supervisor itself requeues its element.
    subprocess.run(["scancel", "--signal=USR2", job_of(runs[0])], check=True)
    wait_until(lambda: state(runs[0]) == "PENDING", "the element to be requeued")
    (first,) = read_attempts(runs[0])
    assert (first.outcome, first.next) == ("stopped", "requeue")
    assert look(runs[0], Queue()).phase == "waiting"
    wait_until(lambda: step_of(runs[3]) >= 3, "the fourth to take its place")
    assert [len(read_attempts(run)) for run in runs] == [1, 1, 1, 1]

    # A cancelled one stays so, and makes room for the requeued one.
    subprocess.run(["scancel", job_of(runs[1])], check=True)
    wait_until(lambda: look(runs[1], Queue()).phase == "stopped", "the cancelled one to stop")
    assert state(runs[1]) == "CANCELLED"
    time.sleep(2.5)  # released at once, Slurm fails the job for its revoked credential
    subprocess.run(["scontrol", "update", f"jobid={job_of(runs[0])}", "StartTime=now"], check=True)
    wait_until(lambda: len(read_attempts(runs[0])) == 2, "the second attempt")
    wait_until(lambda: step_of(runs[0]) > (first.checkpoint_step_after or 0), "further steps")
    assert read_attempts(runs[0])[1].job == job_of(runs[0])

    # The same command brings back what is not active, as another job.
    code, output = project.launch("--config", "first", *SLURM, *sweep)
    assert code == 0, output
    assert output.count("already active") == 3
    assert f"{POINTS[1]}: goes on from step" in output
    assert job_of(runs[1]).isdigit()
    assert sorted(path.name for path in (project.runs / "first.sweep").iterdir()) == ["001", "002"]


@pytest.fixture
def reservation(slurm: Path) -> Iterator[str]:
    command = ["scontrol", "create", "reservation", "ReservationName=night", "StartTime=now"]
    command += ["Duration=60", f"Users={os.getuid()}", "Nodes=ALL", "Flags=IGNORE_JOBS"]
    subprocess.run(command, check=True, capture_output=True)
    yield "night"
    wait_until(lambda: not _output("squeue", "-h"), "an empty queue")
    subprocess.run(["scontrol", "delete", "ReservationName=night"], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_every_field_arrives_in_slurm(
    reservation: str, project: FakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that a cluster without accounting knows, whatever the environment says."""
    monkeypatch.setenv("SBATCH_PARTITION", "high")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "77")
    project.set_ranks(10_000, step_seconds=0.02)
    site = project.root / "configs" / "clusters" / "slurm.yaml"
    site.write_text(
        f"{SITE}reservation: {reservation}\nnodelist: 127.0.0.[2-3]\nconstraint: fast&large\n"
        "exclusive: true\ncomment: 'a # b; c & d <e>'\nmail_type: [END, FAIL]\n"
        "mail_user: a.b+c@site.org\nmemory_gib_per_node: 3\nsignal_lead_seconds: 77\n"
        "sbatch_options: {nice: 5, licenses: 'swin:1', spread-job: true}\n"
        "srun_arguments: [--mpi=none, --cpu-bind=none]\n"
        "setup: ['export SAID=\"a b\"', 'echo \"set up: $SAID\"']\n"
    )
    overrides = ("cluster.nodes=2", "cluster.ranks_per_node=1", "cluster.cpus_per_rank=2")
    code, output = project.launch("--config", "first", *SLURM, *overrides)
    assert code == 0, output
    run = RunDirectory(project.runs / "first")
    wait_until(lambda: step_of(run) >= 3, "steps")
    answer = _output("scontrol", "-o", "show", "job", job_of(run))
    for expected in [
        *("JobName=first ", "Partition=main ", "Reservation=night ", "NumNodes=2 ", "Requeue=1 "),
        *("TimeLimit=00:20:00 ", "ReqNodeList=127.0.0.[2-3] ", "Features=fast&large "),
        *("Comment=a # b; c & d <e> ", "MailUser=a.b+c@site.org ", "MailType=END,FAIL"),
        *("MinMemoryNode=3G ", "Nice=5 ", "Licenses=swin:1 ", "OverSubscribe=NO "),
        f"WorkDir={run.code_path} ",
    ]:
        assert expected in answer, answer
    assert "#SBATCH --signal=USR2@77" in script_of(job_of(run)).replace("'", "")
    environment = json.loads(run.environment_path.read_text())
    assert environment["slurm"] == _output("sbatch", "--version").strip()
    job = read_job(run)
    assert job is not None
    assert "set up: a b" in Path(job.log).read_text()
    assert {attempt.outcome for attempt in read_attempts(run)} == {None}
    subprocess.run(["scancel", job_of(run)], check=True)
    wait_until(lambda: state(run) == "CANCELLED", "the end of the job")


@pytest.mark.slow
def test_keys_reach_the_ranks_and_no_file_in_a_directory_of_odd_letters(
    project: FakeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries = plant_canaries(tmp_path / "home", monkeypatch)
    project.show_key()
    runs_dir = tmp_path / "r #1 $(touch x);`id`&é*"
    before = os.umask(0)
    try:
        arguments = ("--config", "first", *SLURM, f"runs_dir='{runs_dir}'", "--sweep")
        code, output = project.launch(*arguments, "seed=0,1", "--follow")
    finally:
        os.umask(before)
    assert code == 0, output
    key = hashlib.sha256(os.environ["WANDB_API_KEY"].encode()).hexdigest()
    for seed in (0, 1):
        run = RunDirectory(runs_dir / f"first--seed={seed}")
        assert f"key {key}" in run.rank_log(1, 1).read_text()
        script = script_of(job_of(run))
        assert not any(canary in script for canary in canaries)
    assert where_canaries_are(canaries, runs_dir) == []
    assert open_to_others(runs_dir) == []
    assert not any(canary in output for canary in canaries)


@pytest.mark.slow
def test_after_waits_for_the_job_of_another_run(project: FakeProject) -> None:
    project.set_ranks(10_000, step_seconds=0.02)
    assert project.launch("--config", "first", *SLURM)[0] == 0
    first = RunDirectory(project.runs / "first")
    wait_until(lambda: step_of(first) >= 3, "steps")
    after = ("--config", "first", *SLURM, "--name", "other", "--after", "first")
    code, output = project.launch(*after)
    assert code == 0, output
    other = RunDirectory(project.runs / "other")
    assert f"other: submitted as job {job_of(other)}, after job {job_of(first)}" in output
    wait_until(lambda: "afterok" in scontrol_field(job_of(other), "Dependency"), "the dependency")
    subprocess.run(["scancel", job_of(first)], check=True)
    wait_until(lambda: state(other) == "CANCELLED", "what waits in vain to be removed")
    wait_until(lambda: not look(first, Queue(0)).is_active, "the end of the first")
    code, output = project.launch(*after)
    assert code == 2
    assert re.search(r"^error: --after .*first: expected a run that is done .* stopped", output)
