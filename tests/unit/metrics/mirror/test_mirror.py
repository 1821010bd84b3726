"""Weights & Biases: what it gets when it works, and that nothing happens to us when it does not."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from wandb_files import history_of, offline_files, records_of

from pretrain.metrics.jsonl import LineWriter, read_lines
from pretrain.metrics.mirror.mirror import WandbMirror
from pretrain.metrics.recorder import Recorder

SECRETS = ("canary-argument-5a1b", "canary-environment-77c2")


def record_attempt(run, config, attempt, resume_step, steps):
    with Recorder(
        run,
        config,
        rank=0,
        attempt=attempt,
        resume_step=resume_step,
        total_steps=100,
        steps_per_epoch=50,
    ) as recorder:
        for step in steps:
            recorder.write(step, {"train/loss": 1.0 / step, "perf/step_seconds": float("nan")})
        recorder.write(steps[-1], {"eval/top1_fraction": 0.5, "eval/loss": 1.0})


def test_two_attempts_with_a_rewind_are_one_run_without_gap_or_repetition(
    run, make_config, capfd, monkeypatch
):
    monkeypatch.setenv("SOME_API_KEY", SECRETS[1])
    monkeypatch.setattr(sys, "argv", ["train", f"--password={SECRETS[0]}"])
    config = make_config("offline")
    record_attempt(run, config, 1, 0, [10, 20, 30])
    time.sleep(1)  # wandb names directories by the second
    record_attempt(run, config, 2, 20, [30, 40])
    first, second = offline_files(run)
    assert first.name == second.name, "one run id over all attempts"
    rows = history_of(first) + history_of(second)
    train = [row["global_step"] for row in rows if "train/loss" in row]
    assert train == [10, 20, 30, 40]
    assert rows[0] == {"global_step": 10, "train/loss": 0.1, "perf/step_seconds": None}
    assert [row["global_step"] for row in rows if "eval/top1_fraction" in row] == [30, 40]

    kinds = [record.WhichOneof("record_type") for record in records_of(first)]
    assert kinds.count("exit") == 1
    axes = [record.metric for record in records_of(first) if record.HasField("metric")]
    assert any(axis.glob_name == "*" and axis.step_metric == "global_step" for axis in axes)
    (run_record,) = [record.run for record in records_of(first) if record.HasField("run")]
    sent = {item.key: json.loads(item.value_json) for item in run_record.config.update}
    assert sent["model"] == config.model_dump(mode="json")["model"]
    assert (run_record.project, run_record.display_name) == ("tests", "tiny")

    out, err = capfd.readouterr()
    assert err == ""
    assert "wandb" not in out
    assert not [line for line in read_lines(run.events_path) if line["event"] == "wandb_failed"]
    for path in (path for path in run.path.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS), path


BROKEN = {
    "absent": "raise ModuleNotFoundError(\"No module named 'wandb'\")",
    "init": """
        def Settings(**settings): return settings
        def init(**settings): raise OSError(28, 'No space left\\non device')
    """,
    "log": """
        class Run:
            def define_metric(self, *names, **rest): pass
            def log(self, row): raise RuntimeError('core is gone')
            def finish(self, exit_code): pass
        def Settings(**settings): return settings
        def init(**settings): print('wandb: noise'); return Run()
    """,
    "kill": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}
REASONS = {
    "absent": "No module named 'wandb'",
    "init": "No space left on device",
    "log": "core is gone",
    "kill": "code -9",
}


@pytest.fixture
def pretend_wandb(tmp_path, monkeypatch):
    """Put another module in wandb's place, for the mirror's process only."""

    def put(source):
        folder = tmp_path / "pretended"
        folder.mkdir()
        (folder / "wandb.py").write_text(textwrap.dedent(source))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return put


@pytest.mark.parametrize("fault", BROKEN)
def test_whatever_breaks_in_wandb_costs_one_line(fault, run, make_config, pretend_wandb, capfd):
    pretend_wandb(BROKEN[fault])
    record_attempt(run, make_config("offline"), 1, 0, [10, 20])
    failures = [line for line in read_lines(run.events_path) if line["event"] == "wandb_failed"]
    assert len(failures) == 1
    assert REASONS[fault] in failures[0]["reason"]
    out, err = capfd.readouterr()
    assert err == ""
    assert [line for line in out.splitlines() if "wandb" in line] == [
        f"wandb failed: reason {failures[0]['reason']}, consequence metrics.jsonl is complete"
    ]
    assert [line["step"] for line in read_lines(run.metrics_path)] == [10, 20, 20]


def test_a_failure_is_noticed_while_training_goes_on(run, make_config, pretend_wandb):
    pretend_wandb(BROKEN["init"])
    with Recorder(
        run,
        make_config("offline"),
        rank=0,
        attempt=1,
        resume_step=0,
        total_steps=10**9,
        steps_per_epoch=1,
    ) as recorder:
        deadline = time.monotonic() + 60
        step = 0
        while "wandb_failed" not in run.events_path.read_text():
            assert time.monotonic() < deadline
            step += 1
            recorder.write(step, {"train/loss": 1.0})
            time.sleep(0.05)


def make_mirror(run, make_config, **limits):
    LineWriter(run.metrics_path).append({"step": 10, "train/loss": 1.0})
    return WandbMirror(
        make_config("offline").wandb,
        directory=run.wandb_dir,
        metrics_path=run.metrics_path,
        name="tiny",
        config={},
        **limits,
    )


HANGS = {
    "import": "import time; time.sleep(600)",
    "finish": """
        import time
        class Run:
            def define_metric(self, *names, **rest): pass
            def log(self, row): pass
            def finish(self, exit_code): time.sleep(600)
        def Settings(**settings): return settings
        def init(**settings): return Run()
    """,
}


@pytest.mark.parametrize("where", HANGS)
def test_a_hanging_wandb_is_killed_at_the_end(where, run, make_config, pretend_wandb):
    pretend_wandb(HANGS[where])
    mirror = make_mirror(run, make_config, finish_seconds=1.5)
    pid = mirror._process.pid
    mirror.close()
    assert "1.5 s" in mirror.problem()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_hanging_start_is_given_up(run, make_config, pretend_wandb):
    pretend_wandb(HANGS["import"])
    mirror = make_mirror(run, make_config, start_seconds=0.2)
    mirror._process.wait(60)
    assert mirror.problem() == "starting wandb took more than 0.2 s"
    mirror.close()


def test_a_directory_that_cannot_be_written_is_a_problem_not_an_error(run, make_config):
    run.wandb_dir.write_text("in the way")
    mirror = make_mirror(run, make_config)
    assert mirror.problem().startswith("cannot start")
    mirror.close()


def test_a_damaged_settings_file_costs_only_the_run_id(run, make_config, pretend_wandb):
    pretend_wandb(BROKEN["absent"])
    run.wandb_dir.mkdir()
    (run.wandb_dir / "mirror.json").write_text('{"id": "../../x"')
    make_mirror(run, make_config).close()
    assert len(json.loads((run.wandb_dir / "mirror.json").read_text())["id"]) == 8


@pytest.mark.slow
def test_a_killed_rank_still_gets_its_wandb_run_finished(run):
    program = f"""
        import os, signal, sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from conftest import config_of
        from pretrain.metrics.recorder import Recorder
        from pretrain.run_directory import RunDirectory
        recorder = Recorder(RunDirectory({str(run.path)!r}), config_of("offline"), rank=0,
            attempt=1, resume_step=0, total_steps=100, steps_per_epoch=50)
        for step in (10, 20, 30):
            recorder.write(step, {{"train/loss": 1.0}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    mark = run.wandb_dir / "mirrored.json"
    deadline = time.monotonic() + 60
    while not mark.exists() or json.loads(mark.read_text())["step"] < 30:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (path,) = offline_files(run)
    assert [row["global_step"] for row in history_of(path)] == [10, 20, 30]
