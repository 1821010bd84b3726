"""A dead, slow or absent server: training is neither held nor ended, and one line says why."""

import os
import signal
import time
from contextlib import ExitStack, closing
from functools import partial

import pytest
from wandb_servers import FAULTS, FakeWandb, environment, faulty, processes_of, wait_until

from pretrain.metrics import recorder as recorder_module
from pretrain.metrics.jsonl import read_lines
from pretrain.metrics.mirror.mirror import WandbMirror
from pretrain.metrics.recorder import Recorder
from pretrain.run_directory import RunDirectory

STEPS = 200
FINISH_SECONDS = 3.0


@pytest.fixture
def open_recorder(tmp_path, make_config, monkeypatch):
    """Open a run's recorder, whose mirror talks to the server on a port."""
    limited = partial(WandbMirror, finish_seconds=FINISH_SECONDS)
    monkeypatch.setattr(recorder_module, "WandbMirror", limited)
    monkeypatch.setenv("HOME", str(tmp_path))

    def open_one(name, port, mode="online"):
        for variable, text in environment(port).items():
            monkeypatch.setenv(variable, text)
        run = RunDirectory(tmp_path / name)
        run.create(make_config(mode), "{}")
        recorder = Recorder(
            run,
            make_config(mode),
            rank=0,
            attempt=1,
            resume_step=0,
            total_steps=10**6,
            steps_per_epoch=50,
        )
        return run, recorder

    return open_one


def failures(run):
    return [line for line in read_lines(run.events_path) if line["event"] == "wandb_failed"]


def check_the_record(run, steps):
    """Complete, and one line says that wandb failed and why."""
    assert [line["step"] for line in read_lines(run.metrics_path)] == list(steps)
    (failure,) = failures(run)
    assert failure["reason"]
    return failure["reason"]


REASONS = {
    "refused": "Connection refused",
    "hangs": "no answer within 3 s",
    "500": "answers 500",
    "401": "error 401",
    "bytewise": "no answer within 3 s",
    "dies": "connection reset",
}
ENDS_AT_ONCE = ("401", "dies")


@pytest.mark.slow
def test_a_server_that_was_never_any_good(open_recorder, capfd):
    """All of them at a time, as each has a process of its own."""
    with ExitStack() as servers:
        opened = {}
        for fault in FAULTS:
            server = servers.enter_context(faulty(fault))
            opened[fault] = server, *open_recorder(fault, server.port)
        for fault, (server, run, _) in opened.items():
            if fault != "refused":
                wait_until(lambda server=server: server.requests)
            if fault in ENDS_AT_ONCE:
                wait_until(lambda server=server: not processes_of(server.port))
            else:
                log = run.wandb_dir / "mirror.log"
                wait_until(lambda log=log: "note: http" in log.read_text())
        for step in range(1, STEPS + 1):
            for _, _, recorder in opened.values():
                recorder.write(step, {"train/loss": 1.0 / step})
        # The others were still being asked when the last record was written.
        for fault, (server, run, _) in opened.items():
            assert (not processes_of(server.port)) == (fault in ENDS_AT_ONCE), fault
            assert len(failures(run)) == (fault in ENDS_AT_ONCE), fault
        for fault, (server, run, recorder) in opened.items():
            recorder.close()
            assert REASONS[fault] in check_the_record(run, range(1, STEPS + 1)), fault
            wait_until(lambda server=server: not processes_of(server.port))
    out, err = capfd.readouterr()
    assert err == ""
    assert out.count("wandb failed: reason") == len(FAULTS)


@pytest.mark.slow
def test_a_server_that_dies_when_everything_began_well(open_recorder):
    with closing(FakeWandb()) as server:
        run, recorder = open_recorder("dying", server.port)
        recorder.write(1, {"train/loss": 1.0})
        wait_until(lambda: "UpsertBucket" in server.operations())
        server.dies = True
        for step in range(2, STEPS + 1):
            recorder.write(step, {"train/loss": 1.0})
        assert not failures(run), "it is still trying"
        recorder.close()
        assert "finish" in check_the_record(run, range(1, STEPS + 1))
        wait_until(lambda: not processes_of(server.port))


GONE = ("Connection lost", "MailboxClosedError", "HandleAbandonedError")
"""In the words of wandb, by what it waited for in that moment."""


@pytest.mark.parametrize("mode", ["offline", pytest.param("online", marks=pytest.mark.slow)])
def test_wandbs_own_process_dies(mode, open_recorder):
    with closing(FakeWandb()) as server:
        run, recorder = open_recorder("killed", server.port, mode)
        wait_until(lambda: list(run.wandb_dir.glob("*run-*/*.wandb")))
        (core,) = [pid for pid, words in processes_of(server.port).items() if "wandb-core" in words]
        os.kill(core, signal.SIGKILL)
        steps = 0
        while not failures(run):
            steps += 1
            recorder.write(steps, {"train/loss": 1.0})
            time.sleep(0.02)
        recorder.write(steps + 1, {"train/loss": 1.0})
        recorder.close()
        assert check_the_record(run, range(1, steps + 2)).endswith(GONE)
        wait_until(lambda: not processes_of(server.port))
