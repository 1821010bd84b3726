"""Runs of this machine looked after as typed, with fake ranks; nothing of them stays behind."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_project import FakeProject, processes_of

from launch.ledger import read_attempts
from launch.submit import read_job
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import lock_holder

LOCAL = ("--cluster", "local")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[FakeProject]:
    made = FakeProject(tmp_path, steps=100_000)
    made.set_ranks(100_000, step_seconds=0.02)
    yield made
    for pid in processes_of(made.runs):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def run(project: FakeProject) -> RunDirectory:
    """A run that trains, with nobody who watches it."""
    return begin(project)


def begin(project: FakeProject, *arguments: str) -> RunDirectory:
    code, output = project.launch("--config", "first", *LOCAL, "--no-follow", *arguments)
    assert code == 0, output
    run = RunDirectory(project.runs / "first")
    wait_until(lambda: step_of(run) >= 3, "steps")
    return run


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def step_of(run: RunDirectory) -> int:
    return (run.read_progress() or {}).get("step", 0)


def supervisor_of(run: RunDirectory) -> int:
    holder = lock_holder(run)
    assert holder is not None
    return holder["pid"]


def nothing_is_left(run: RunDirectory) -> None:
    wait_until(lambda: not processes_of(run.path), f"processes to end: {processes_of(run.path)}")


def test_a_run_is_looked_after_from_start_to_end(project: FakeProject, run: RunDirectory) -> None:
    code, output = project.look_after("list", "--json")
    (listed,) = json.loads(output)["runs"]
    assert (listed["name"], listed["state"], listed["attempts"]) == ("first", "running", 1)
    assert listed["step"] >= 3
    assert listed["eta_seconds"] is not None
    assert listed["problems"] == []
    code, output = project.look_after("logs", "first", "--rank", "1")
    assert (code, "rank 1 of 2 from step 0" in output) == (0, True)

    # A follower that is killed takes nothing with it.
    follower = project.start("follow", "first", program="runs.py")
    assert follower.stdout is not None
    assert "rank 0 of 2 from step 0" in follower.stdout.readline()
    follower.kill()
    follower.communicate()
    at_death = step_of(run)
    wait_until(lambda: step_of(run) > at_death + 3, "steps without the follower")

    code, output = project.look_after("stop", "first")
    assert code == 0, output
    saved = run.newest_checkpoint_step()
    assert f"first: saved at step {saved:,}; nothing is to be done again" in output
    assert saved == step_of(run)
    nothing_is_left(run)

    project.set_ranks(step_of(run) + 5)
    code, output = project.look_after("resume", "first", "--follow", "log.every_steps=7")
    assert code == 0, output
    assert f"first: goes on from step {saved}" in output
    assert run.read_config().log.every_steps == 7
    assert [attempt.outcome for attempt in read_attempts(run)] == ["stopped", "done"]
    nothing_is_left(run)


@pytest.mark.slow
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_in_follow_saves_and_twice_ends_it_now(
    project: FakeProject, run: RunDirectory, presses: int
) -> None:
    if presses == 2:  # ranks that do not leave by themselves
        for pid, _ in read_attempts(run)[0].ranks:
            os.kill(pid, signal.SIGSTOP)
    follower = project.start("follow", "first", program="runs.py")
    assert follower.stdout is not None
    while "training step" not in follower.stdout.readline():
        pass
    follower.send_signal(signal.SIGINT)
    if presses == 2:
        while "asked to save and stop" not in follower.stdout.readline():
            pass
        follower.send_signal(signal.SIGINT)
    output, _ = follower.communicate(timeout=60)
    assert follower.returncode == 75, output
    nothing_is_left(run)
    assert (run.newest_checkpoint_step() == step_of(run)) == (presses == 1)


@pytest.mark.slow
def test_watching_only_leaves_the_run_alone(project: FakeProject, run: RunDirectory) -> None:
    watching = {"training step": ["follow", "first", "--watch-only"]}
    watching["meet at"] = ["logs", "first", "--follow"]
    for shown, arguments in watching.items():
        watcher = project.start(*arguments, program="runs.py")
        assert watcher.stdout is not None
        while shown not in watcher.stdout.readline():
            pass
        watcher.send_signal(signal.SIGINT)
        watcher.communicate(timeout=60)
        assert watcher.returncode == 130
    seen = step_of(run)
    wait_until(lambda: step_of(run) > seen + 3, "further steps")
    assert len(read_attempts(run)) == 1


@pytest.mark.slow
def test_now_ends_even_a_frozen_supervisor(project: FakeProject, run: RunDirectory) -> None:
    os.kill(supervisor_of(run), signal.SIGSTOP)
    code, output = project.look_after("stop", "first", "--now")
    assert code == 0, output
    assert "first: asked to end at once" in output
    nothing_is_left(run)


@pytest.mark.slow
def test_nothing_is_left_of_a_run_whose_supervisor_is_killed(
    project: FakeProject, run: RunDirectory
) -> None:
    os.kill(supervisor_of(run), signal.SIGKILL)
    nothing_is_left(run)
    assert run.newest_checkpoint_step() == step_of(run)
    code, output = project.look_after("status", "first")
    assert "first: lost: its supervisor is gone without a word" in output
    project.set_ranks(step_of(run) + 5)
    code, output = project.look_after("resume", "first", "--follow")
    assert code == 0, output
    nothing_is_left(run)


@pytest.mark.slow
def test_the_second_run_of_a_job_is_not_stopped_in_the_firsts_place(project: FakeProject) -> None:
    run = begin(project, "--config", "second")
    second = RunDirectory(project.runs / "second")
    assert read_job(run) == read_job(second)
    code, output = project.look_after("stop", "second")
    assert code == 2
    assert "stop that one (python launch/runs.py stop" in output
    assert project.look_after("stop", "first")[0] == 0
    code, output = project.look_after("status", "second")
    assert "second: lost: its job ended before it began" in output
    nothing_is_left(run)
    nothing_is_left(second)


@pytest.mark.slow
def test_a_launcher_killed_while_it_submits_leaves_something_to_resume(
    project: FakeProject,
) -> None:
    project.set_ranks(10)
    run = RunDirectory(project.runs / "first")
    launcher = project.start("--config", "first", *LOCAL, "--no-follow")
    wait_until(lambda: run.exists, "the config")
    launcher.kill()
    launcher.communicate()
    wait_until(lambda: not processes_of(run.path), "whatever it started to end")
    assert project.look_after("list")[0] == 0
    code, output = project.look_after("resume", "first", "--follow")
    assert code == 0, output
    assert run.is_done()
    nothing_is_left(run)
