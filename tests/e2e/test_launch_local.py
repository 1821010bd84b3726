"""The whole launcher on this machine, as typed: submitit's local executor, fake ranks."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_project import FakeProject, clean_environment

from launch.ledger import read_attempts
from launch.slurm import main
from launch.submit import read_job
from pretrain.errors import PretrainError
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import is_alive, lock_holder

LOCAL = ("--cluster", "local")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[FakeProject]:
    made = FakeProject(tmp_path)
    yield made
    for path in made.runs.glob("*"):
        holder = lock_holder(RunDirectory(path))
        if holder:
            os.kill(holder["pid"], signal.SIGQUIT)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def step_of(run: RunDirectory) -> int:
    return (run.read_progress() or {}).get("step", 0)


def test_launch_follow_and_launch_again(project: FakeProject) -> None:
    code, output = project.launch("--config", "first", *LOCAL)
    assert code == 0, output
    run = RunDirectory(project.runs / "first")
    assert run.is_done()
    assert "plan of first" in output
    assert "first: attempt 1 on" in output
    assert f"run directory: {run.path}" in output
    assert "accuracy: top-1 50.00 %" in output
    assert "next: python launch/slurm.py --config second" in output
    assert (run.code_path / "pretrain" / "fake_rank.py").is_file()
    assert "gpus None" in run.rank_log(1, 0).read_text()

    code, output = project.launch("--config", "first", *LOCAL, "--dry-run")
    assert "would submit nothing: done: done at step 30" in output

    before = sorted(path for path in run.path.rglob("*") if path.is_file())
    code, output = project.launch("--config", "first", *LOCAL)
    assert (code, "already done" in output) == (0, True), output
    assert before == sorted(path for path in run.path.rglob("*") if path.is_file())

    code, output = project.launch("--config", "first", *LOCAL, "seed=3")
    assert code == 2
    assert "seed: the run has 0, got 3" in output


def test_a_chain_is_one_job_and_sees_the_gpus_of_the_user(
    project: FakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    code, output = project.launch("--config", "both", *LOCAL)
    assert code == 0, output
    first, second = (RunDirectory(project.runs / name) for name in ("first", "second"))
    assert first.is_done()
    assert second.is_done()
    assert read_job(first) == read_job(second)
    assert "gpus 6,7" in second.rank_log(1, 1).read_text()
    end_of_first = first.read_progress()
    assert end_of_first is not None
    assert read_attempts(second)[0].start_time > end_of_first["time"]


@pytest.mark.slow
def test_a_chain_stops_where_it_fails(project: FakeProject) -> None:
    project.set_ranks(30, "raise:1:5:99")
    code, output = project.launch("--config", "both", *LOCAL)
    assert code == 70
    assert "RuntimeError: planned at step 5" in output
    assert "first: failed:" in output
    assert read_attempts(RunDirectory(project.runs / "second")) == []

    project.set_ranks(30)
    code, output = project.launch("--config", "both", *LOCAL)
    assert code == 0, output
    assert [attempt.outcome for attempt in read_attempts(RunDirectory(project.runs / "first"))] == [
        *["crashed"] * 3,
        "done",
    ]


def test_ctrl_c_saves_and_the_same_command_resumes(project: FakeProject) -> None:
    project.set_ranks(1000, step_seconds=0.02)
    run = RunDirectory(project.runs / "first")
    process = project.start("--config", "first", *LOCAL)
    wait_until(lambda: step_of(run) >= 3, "steps")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    saved = run.newest_checkpoint_step()
    assert saved == step_of(run)
    assert saved is not None
    assert f"saved and stopped at step {saved}" in output

    code, output = project.launch("--config", "second", *LOCAL)
    assert code == 2
    assert "init_from: first is not done (saved and stopped" in output

    project.set_ranks(saved + 5)
    code, output = project.launch("--config", "first", *LOCAL)
    assert code == 0, output
    assert f"goes on from step {saved}" in output


@pytest.mark.slow
def test_the_job_survives_its_launcher_and_is_not_started_twice(project: FakeProject) -> None:
    project.set_ranks(150, step_seconds=0.04)
    run = RunDirectory(project.runs / "first")
    process = project.start("--config", "first", *LOCAL)
    wait_until(lambda: step_of(run) >= 3, "steps")
    process.kill()
    process.communicate()
    at_death = step_of(run)
    wait_until(lambda: step_of(run) > at_death + 3, "steps without the launcher")
    code, output = project.launch("--config", "both", *LOCAL)
    assert code == 0, output
    assert "first: already active as job" in output
    assert len(read_attempts(run)) == 1
    (after,) = read_attempts(RunDirectory(project.runs / "second"))
    assert after.outcome == "done"
    end_of_first = run.read_progress()
    assert end_of_first is not None
    assert after.start_time > end_of_first["time"], "the second run waits for the first"


def test_ranks_leave_when_controller_and_supervisor_are_killed(project: FakeProject) -> None:
    project.set_ranks(2000, step_seconds=0.02)
    run = RunDirectory(project.runs / "first")
    code, output = project.launch("--config", "first", *LOCAL, "--no-follow")
    assert code == 0, output
    wait_until(lambda: step_of(run) >= 3, "steps")
    job, holder = read_job(run), lock_holder(run)
    assert job is not None
    assert holder is not None
    os.kill(int(job.job_id), signal.SIGKILL)
    os.kill(holder["pid"], signal.SIGKILL)
    ranks = read_attempts(run)[0].ranks
    wait_until(lambda: not any(is_alive(*rank) for rank in ranks), "the ranks to leave")
    assert run.newest_checkpoint_step() == step_of(run)
    project.set_ranks(step_of(run) + 5)
    code, output = project.launch("--config", "first", *LOCAL)
    assert code == 0, output
    assert [attempt.outcome for attempt in read_attempts(run)] == [None, "done"]


def test_plan_and_dry_run_write_nothing_and_load_nothing_heavy(project: FakeProject) -> None:
    before = sorted(project.root.parent.iterdir())
    code, output = project.launch("--config", "both", *LOCAL, "--plan")
    assert code == 0
    assert output.count("plan of") == 2
    # In any order: a run comes after the one it starts from.
    code, output = project.launch("--config", "second", "--config", "first", *LOCAL, "--dry-run")
    assert code == 0, output
    first, second = output.split("plan of second")
    assert "would wait for" not in first
    assert f"would create {project.runs / 'second'}\nwould wait for first\n" in second
    assert sorted(project.root.parent.iterdir()) == before

    for arguments in (["--help"], ["--config", "both", *LOCAL, "--plan"]):
        answer = subprocess.run(
            [sys.executable, "-X", "importtime", "launch/slurm.py", *arguments],
            cwd=project.root,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        loaded = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
        assert "pretrain.errors" in loaded
        assert not loaded & {"torch", "submitit", "rich", "wandb", "numpy", "deepspeed"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frist"], "did you mean 'first'?"),
        (["first", "optim.lrr=1"], "optim.lrr"),
        (["both", "--name", "x"], "--name: names one run"),
        (["first", "--config", "first"], "two runs are named first"),
        (["second"], "init_from: first"),
        (["first", "data.path=/nowhere"], "/nowhere"),
        (["first", "runs_dir=/proc/x"], "/proc"),
    ],
)
def test_bad_input_is_an_error_and_writes_nothing(
    project: FakeProject, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("pretrain.config.load.CONFIGS_DIR", project.root / "configs")
    with pytest.raises(PretrainError, match=re.escape(message)):
        main(["--config", *arguments, *LOCAL])
    assert not project.runs.exists()


def test_runs_that_start_from_each_other_are_refused(project: FakeProject) -> None:
    (project.root / "configs" / "first.yaml").open("a").write("init_from: second\n")
    code, output = project.launch("--config", "first", "--config", "second", *LOCAL)
    assert (code, output) == (2, "error: init_from: first, second start from each other\n")


def test_bad_input_is_one_line_and_exit_code_two(project: FakeProject) -> None:
    code, output = project.launch("--config", "first", *LOCAL, "seed=-1")
    assert code == 2
    (line,) = output.splitlines()
    assert line.startswith("error: override 'seed=-1': seed: ")


def test_a_terminal_gets_a_bar(project: FakeProject) -> None:
    project.set_ranks(40, step_seconds=0.03)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "launch/slurm.py", "--config", "first", *LOCAL],
        cwd=project.root,
        env=clean_environment() | {"TERM": "xterm", "COLUMNS": "40"},
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    seen = b""
    try:
        while chunk := os.read(leader, 65536):
            seen += chunk
    except OSError:  # what Linux says when the other side is closed
        pass
    finally:
        os.close(leader)
        process.kill()
    assert process.wait() in (0, -signal.SIGKILL)
    text = seen.decode(errors="replace")
    assert "/40" in text
    assert re.search(r"time left (unknown|\d:\d\d:\d\d)", text)  # whole, even where it is narrow
    assert "first: done at step 40" in text
