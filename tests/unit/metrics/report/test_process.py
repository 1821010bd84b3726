"""The report beside training: renewed when due, never twice at once, and nobody's loss."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.metrics.jsonl import read_lines
from pretrain.metrics.recorder import Recorder
from pretrain.metrics.report import process as process_module
from pretrain.metrics.report.process import (
    FIRST_SECONDS,
    LONGEST_SECONDS,
    Refresher,
    write_at_end,
    write_last,
)

ROOT = Path(__file__).parents[4]


class Time:
    """Seconds that grow when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Time()


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """Put a program in the place of the one that writes the report; return who was started."""
    started = []

    def choose(code):
        popen = subprocess.Popen

        def start(command, **settings):
            assert command[:4] == [sys.executable, "-m", "pretrain.metrics", "report"]
            settings["cwd"] = tmp_path
            process = popen([sys.executable, "-S", "-c", code], **settings)
            started.append(process)
            return process

        monkeypatch.setattr(process_module.subprocess, "Popen", start)
        return started

    yield choose
    for process in started:
        process.kill()
        process.wait()


def wait_for_end(process):
    """Wait without reaping: that is for the one who started it."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_report_is_due_after_the_interval_and_never_begun_twice_at_once(run, clock, programs):
    started = programs("import time; time.sleep(600)")
    refresher = Refresher(run, 300.0, clock)
    refresher.refresh()
    assert not started, "a run that has just begun has nothing to show"
    clock.now += FIRST_SECONDS
    refresher.refresh()
    assert len(started) == 1
    clock.now += 500
    refresher.refresh(evaluated=True)
    assert len(started) == 1
    clock.now += LONGEST_SECONDS
    refresher.refresh()
    wait_for_end(started[0])
    refresher.refresh()
    assert len(started) == 2, "one that hangs is ended, and the next begun"
    refresher.close()
    assert started[1].returncode is not None
    assert "code -9" in refresher.problem()


def test_an_evaluation_is_shown_early_where_that_costs_little(run, clock, programs):
    started = programs("pass")
    refresher = Refresher(run, 300.0, clock)
    clock.now += FIRST_SECONDS
    refresher.refresh(evaluated=True)
    wait_for_end(started[0])
    clock.now += 4.0
    refresher.refresh(evaluated=True)
    clock.now += 35.0
    refresher.refresh(evaluated=True)
    assert len(started) == 1, "it took 4 s"
    clock.now += 1.0
    refresher.refresh()
    assert len(started) == 2
    wait_for_end(started[1])
    clock.now += 299.0
    refresher.refresh()
    assert len(started) == 2
    clock.now += 1.0
    refresher.refresh()
    assert len(started) == 3
    assert refresher.problem() is None


def test_nothing_is_written_beside_training_where_the_config_says_so(run, clock, programs):
    started = programs("pass")
    refresher = Refresher(run, 0.0, clock)
    clock.now += 1e6
    refresher.refresh(evaluated=True)
    assert not started


def test_what_fails_is_one_event_and_is_tried_again(run, make_config, clock, programs):
    started = programs("import sys; sys.exit('Traceback\\nerror: no space')")
    every = {"rank": 0, "attempt": 1, "resume_step": 0, "total_steps": 9, "steps_per_epoch": 9}
    with Recorder(run, make_config(), **every) as recorder:
        recorder._reports = Refresher(run, 300.0, clock)
        for step in range(1, 6):
            clock.now += 400.0
            recorder.write(step, {"train/loss": 1.0})
            wait_for_end(started[-1])
    assert len(started) == 5
    failed = [event for event in read_lines(run.events_path) if event["event"] == "report_failed"]
    assert [event["reason"] for event in failed] == ["no space"]


def test_a_program_that_cannot_be_started_ends_nothing(run, clock, monkeypatch):
    monkeypatch.setattr(process_module.sys, "executable", "/nowhere/python")
    refresher = Refresher(run, 1.0, clock)
    clock.now += 10
    refresher.refresh()
    assert "cannot start" in refresher.problem()
    assert "cannot start" in write_at_end(run)


def test_the_end_waits_for_its_report_but_not_for_ever(run, programs):
    started = programs("import time; time.sleep(600)")
    assert write_at_end(run, seconds=0.2) == "not written within 0.2 s"
    assert started[0].returncode is not None


def test_the_real_program_writes_the_report(run):
    line = {"step": 1, "time": 2.0, "attempt": 1, "train/loss": 3.0}
    run.metrics_path.write_text(json.dumps(line) + "\n")
    assert write_at_end(run) is None
    assert "<svg" in run.report_path.read_text()


def test_a_supervisor_writes_the_last_report_where_the_trainer_has_not(run, programs):
    started = programs("pass")
    assert write_last(run, done=False) is None
    assert not started, "nothing was recorded"
    run.metrics_path.touch()
    run.progress_path.touch()
    for done, reports in ((False, 1), (True, 2)):
        assert write_last(run, done=done) is None
        assert len(started) == reports
    run.report_path.touch()
    write_last(run, done=True)
    assert len(started) == 2
    write_last(run, done=False)
    assert len(started) == 3


@pytest.mark.slow
def test_what_the_real_program_says_is_the_reason(run):
    run.report_path.mkdir()
    assert "report.html: cannot be written: Is a directory" in write_at_end(run)


@pytest.mark.parametrize("alive", [True, False])
def test_one_whose_training_has_ended_leaves_the_report_alone(run, alive):
    parent = os.getpid() if alive else 1
    command = [sys.executable, "-m", "pretrain.metrics", "report", str(run.path)]
    subprocess.run([*command, "--beside", str(parent)], cwd=ROOT, check=True)
    assert run.report_path.exists() == alive
