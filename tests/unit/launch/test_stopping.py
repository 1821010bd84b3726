"""How a run is asked to stop in Slurm, and what is said of runs that do not run."""

import os
from pathlib import Path

import pytest
from fabricated import add_attempt, add_checkpoint, add_progress, job_fields, make_run

from launch import scheduler
from launch.ledger import append_end
from launch.look_after import stopping
from launch.look_after.stopping import stop_run
from launch.scheduler import JobState
from launch.status import Queue, look
from launch.submit import read_job, write_job
from pretrain.errors import LaunchError
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import run_lock, start_ticks


class Slurm:
    """A controller with one job, which does what it is told after a while."""

    def __init__(self, run: RunDirectory, state: str) -> None:
        self.run = run
        self.state = state
        self.told: list[tuple[str, ...]] = []
        self.deaf = False

    def job_state(self, _job: str) -> JobState:
        return JobState(self.state, "None", "Unknown")

    def cancel_pending(self, job: str) -> None:
        self.told.append(("cancel pending", job))
        if self.state == "PENDING":
            self.state = "CANCELLED"

    def cancel(self, job: str) -> None:
        self.told.append(("cancel", job))
        self.state = "CANCELLED"

    def signal_batch(self, job: str, name: str) -> None:
        self.told.append((name, job))
        if self.deaf:
            return
        saved = add_checkpoint(self.run, 120) if name == "TERM" else None
        append_end(
            self.run,
            1,
            outcome="stopped",
            next_action="stop",
            checkpoint_step=120 if saved else None,
            reason="saved and stopped at step 120" if saved else "stopped without saving",
            culprit_rank=None,
        )
        self.state = "FAILED"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path, executor="slurm")


@pytest.fixture
def slurm(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    slurm = Slurm(run, "RUNNING")
    for name in ("job_state", "cancel_pending", "cancel", "signal_batch"):
        monkeypatch.setattr(scheduler, name, getattr(slurm, name))
    monkeypatch.setattr(stopping, "QUEUE_SECONDS", 0.0)
    monkeypatch.setattr(stopping, "LOOK_SECONDS", 0.001)
    return slurm


def test_a_running_job_saves_and_is_not_requeued(
    run: RunDirectory, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    add_attempt(run, 1, outcome=None)
    add_progress(run)
    assert stop_run(run, now=False, wait=True) == 0
    assert slurm.told == [("TERM", "7")]
    said = capsys.readouterr().out
    assert "first: asked to save and stop\n" in said
    assert "first: saved at step 120; nothing is to be done again\n" in said
    assert f"resume: python launch/runs.py resume {run.path}" in said


def test_now_does_not_save_and_says_what_is_lost(
    run: RunDirectory, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    add_attempt(run, 1, outcome=None)
    add_progress(run)
    add_checkpoint(run, 100)
    assert stop_run(run, now=True, wait=True) == 0
    assert slurm.told == [("QUIT", "7")]
    assert "saved at step 100; 20 steps are to be done again" in capsys.readouterr().out


def test_a_supervisor_that_does_not_answer_is_asked_again_and_in_the_end_its_job_cancelled(
    run: RunDirectory, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_attempt(run, 1, outcome=None)
    slurm.deaf = True
    monkeypatch.setattr(stopping, "ASK_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(stopping, "NOW_SECONDS", 0.1)
    assert stop_run(run, now=True, wait=True) == 0
    assert len(slurm.told) > 2
    assert set(slurm.told[:-1]) == {("QUIT", "7")}
    assert slurm.told[-1] == ("cancel", "7")
    assert look(run, Queue()).phase == "stopped"


def test_a_stop_that_takes_too_long_is_an_error(
    run: RunDirectory, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_attempt(run, 1, outcome=None)
    slurm.deaf = True
    monkeypatch.setattr(stopping, "PATIENCE_SECONDS", 0.02)
    with pytest.raises(LaunchError, match="give --now"):
        stop_run(run, now=False, wait=True)


@pytest.mark.parametrize("wait", [True, False])
def test_a_pending_job_is_cancelled_and_that_is_remembered(
    run: RunDirectory, slurm: Slurm, wait: bool
) -> None:
    add_attempt(run, 1, outcome="stopped", next_action="requeue")
    slurm.state = "PENDING"
    assert stop_run(run, now=False, wait=wait) == 0
    assert slurm.told == [("cancel pending", "7")]
    assert job_fields(run)["cancelled_time"] is not None
    slurm.state = "BOOT_FAIL"  # or forgotten: Slurm says no more that it was cancelled
    status = look(run, Queue())
    assert (status.phase, status.detail) == ("stopped", "job 7 was cancelled")


def test_a_job_that_starts_while_it_is_cancelled_saves(
    run: RunDirectory, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_attempt(run, 1, outcome=None)
    slurm.state = "PENDING"

    def start(job: str) -> None:
        slurm.state = "RUNNING"
        slurm.cancel_pending(job)

    monkeypatch.setattr(scheduler, "cancel_pending", start)
    monkeypatch.setattr(stopping, "ASK_AGAIN_SECONDS", 0.0)
    assert stop_run(run, now=False, wait=True) == 0
    assert slurm.told == [("cancel pending", "7"), ("TERM", "7")]
    assert job_fields(run)["cancelled_time"] is None


def test_what_was_to_be_saved_and_was_not_is_an_exit_code(run: RunDirectory, slurm: Slurm) -> None:
    add_attempt(run, 1, outcome=None)
    add_progress(run, step=130)
    assert stop_run(run, now=False, wait=True) == 70


def test_a_run_that_is_not_active_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    add_attempt(run, 1)
    assert stop_run(run, now=False, wait=True) == 0
    assert capsys.readouterr().out == "first: not active; stopped: why\n"


def test_a_run_on_another_host_is_stopped_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    with run_lock(run, "7"):
        monkeypatch.setattr(
            stopping, "lock_holder", lambda run: {"host": "far", "pid": 1, "ticks": 1}
        )
        with pytest.raises(LaunchError, match="runs on far; stop it there"):
            stop_run(run, now=False, wait=True)


def test_stopping_a_run_does_not_stop_the_one_before_it_in_the_same_job(tmp_path: Path) -> None:
    first, second = make_run(tmp_path), make_run(tmp_path, "second")
    me = os.getpid()
    job = read_job(first)
    assert job is not None
    for run in (first, second):
        write_job(run, type(job)("local", str(me), job.host, job.time, job.log, start_ticks(me)))
    with (
        run_lock(first, str(me)),
        pytest.raises(LaunchError, match="waits for its turn in the job of first; stop that one"),
    ):
        stop_run(second, now=False, wait=True)
