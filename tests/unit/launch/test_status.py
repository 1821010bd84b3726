"""Where a run stands, from its files and what Slurm answers."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from launch import scheduler
from launch.ledger import Next, Outcome, append_end, append_start
from launch.scheduler import JobState
from launch.status import Queue, look
from launch.submit import Job
from pretrain.errors import LaunchError
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import run_lock, start_ticks


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path)
    run.config_path.touch()
    return run


def submitted(run: RunDirectory, executor: str, pid: int = 7, ticks: int | None = None) -> None:
    job = {"executor": executor, "job_id": str(pid), "host": os.uname().nodename}
    job |= {"time": time.time() - 100, "log": "x", "ticks": ticks}
    run.job_path.write_text(json.dumps(asdict(Job(**job))))  # pyright: ignore[reportArgumentType]


def ended(run: RunDirectory, outcome: Outcome, next_action: Next, job: str = "7") -> None:
    append_start(run, 1, job=job, host="h", checkpoint_step=None)
    append_end(
        run,
        1,
        outcome=outcome,
        next_action=next_action,
        checkpoint_step=None,
        reason="why",
        culprit_rank=None,
    )


def test_never_launched(tmp_path: Path, run: RunDirectory) -> None:
    assert look(RunDirectory(tmp_path / "none"), Queue()).phase == "idle"
    assert look(run, Queue()).phase == "idle"


def test_local_phases(run: RunDirectory) -> None:
    me = os.getpid()
    submitted(run, "local", me, start_ticks(me))
    assert look(run, Queue()).phase == "waiting"
    with run_lock(run, str(me)) as held:
        assert held
        assert look(run, Queue()).phase == "running"
    ended(run, "stopped", "stop", str(me))
    assert look(run, Queue()).phase == "stopped"
    run.progress_path.write_text('{"state": "done"}')
    assert look(run, Queue()).phase == "done"


def test_a_process_id_used_again_is_not_the_job(run: RunDirectory) -> None:
    submitted(run, "local", os.getpid(), 1)
    assert look(run, Queue()).phase == "lost"


@pytest.mark.parametrize(
    ("state", "end", "phase"),
    [
        ("PENDING", None, "waiting"),
        ("PENDING", ("stopped", "stop"), "waiting"),
        ("RUNNING", None, "running"),
        ("COMPLETING", ("stopped", "stop"), "running"),
        ("CANCELLED", ("stopped", "stop"), "stopped"),
        ("RUNNING", ("crashed", "give_up"), "failed"),
        ("FAILED", ("crashed", "give_up"), "failed"),
        ("COMPLETED", ("done", "done"), "done"),
        (None, ("done", "done"), "done"),
        ("NODE_FAIL", None, "lost"),
        (None, None, "lost"),
    ],
)
def test_slurm_phases(
    run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    state: str | None,
    end: tuple[Outcome, Next] | None,
    phase: str,
) -> None:
    answer = None if state is None else JobState(state, "None", "Unknown")
    monkeypatch.setattr(scheduler, "job_state", lambda job_id: answer)
    submitted(run, "slurm")
    if end:
        ended(run, *end)
    assert look(run, Queue()).phase == phase


@pytest.mark.parametrize(("other", "phase"), [("RUNNING", "running"), ("FAILED", "lost")])
def test_a_run_that_another_job_has_is_not_submitted_again(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, other: str, phase: str
) -> None:
    states = {"7": "FAILED", "6": other}
    answer = lambda job_id: JobState(states[job_id], "None", "Unknown")  # noqa: E731
    monkeypatch.setattr(scheduler, "job_state", answer)
    submitted(run, "slurm")
    with run_lock(run, "6"):
        assert look(run, Queue()).phase == phase


def test_slurm_is_asked_seldom_but_after_every_change(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(job_id: str) -> JobState:
        asked.append(job_id)
        if len(asked) > 2:
            raise LaunchError("no answer")
        return JobState("RUNNING", "None", "Unknown")

    monkeypatch.setattr(scheduler, "job_state", answer)
    submitted(run, "slurm")
    queue = Queue()
    for _ in range(5):
        assert look(run, queue).phase == "running"
    assert asked == ["7"]
    append_start(run, 1, job="7", host="h", checkpoint_step=None)
    look(run, queue)
    look(run, queue)
    assert asked == ["7"] * 2
    append_start(run, 2, job="7", host="h", checkpoint_step=None)
    assert look(run, queue).phase == "running", "an old answer serves while Slurm is silent"
