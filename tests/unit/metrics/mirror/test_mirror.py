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
from PIL import Image

from pretrain.metrics.jsonl import LineWriter, read_lines
from pretrain.metrics.mirror.files import local_files, read_file
from pretrain.metrics.mirror.mirror import WandbMirror, send_the_rest
from pretrain.metrics.recorder import Recorder

SECRETS = ("canary-argument-5a1b", "canary-environment-77c2")


def read_back(run):
    return [read_file(path) for path in local_files(run.wandb_dir)]


def record_attempt(run, config, attempt, resume_step, steps):
    with Recorder(
        run,
        config,
        rank=0,
        attempt=attempt,
        resume_step=resume_step,
        total_steps=100,
        steps_per_epoch=50,
        facts={"plan": {"total_steps": 100}},
    ) as recorder:
        for step in steps:
            recorder.write(step, {"train/loss": 1.0 / step, "perf/step_seconds": float("nan")})
        recorder.write(steps[-1], {"eval/top1_fraction": 0.5, "eval/loss": 1.0})


def test_two_attempts_with_a_restart_are_one_run_without_gap_or_repetition(
    run, make_config, capfd, monkeypatch
):
    monkeypatch.setenv("SOME_API_KEY", SECRETS[1])
    monkeypatch.setattr(sys, "argv", ["train", f"--password={SECRETS[0]}"])
    config = make_config("offline")
    record_attempt(run, config, 1, 0, [10, 20, 30])
    record_attempt(run, config, 2, 20, [30, 40])
    first, second = read_back(run)
    assert first.run_id == second.run_id, "one run id over all attempts"
    assert [file.damage for file in (first, second)] == [[], []]
    rows = first.rows + second.rows
    assert rows[0] == {
        "global_step": 10,
        "samples": 80,
        "train/loss": 0.1,
        "perf/step_seconds": None,
    }
    assert [row["global_step"] for row in rows] == [10, 20, 30, 40]
    assert [row["samples"] for row in rows] == [80, 160, 240, 320]
    assert [row["global_step"] for row in rows if "eval/top1_fraction" in row] == [30, 40]

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.hidden == {"global_step", "samples"}
    assert first.metrics["train/*"] == first.metrics["perf/*"] == "global_step"
    assert first.metrics["eval/*"] == "samples"
    assert first.config["model"] == config.model_dump(mode="json")["model"]
    assert first.config["plan"] == {"total_steps": 100}
    assert first.project == "tests"

    out, err = capfd.readouterr()
    assert err == ""
    assert "wandb" not in out
    assert not [line for line in read_lines(run.events_path) if line["event"] == "wandb_failed"]
    for path in (path for path in run.path.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS), path


def test_alerts_checkpoints_and_the_picture_are_told_once_each_over_attempts(run, make_config):
    """Told again where the files of an attempt are lost, and not where they are there."""
    Image.new("RGB", (8, 8)).save(run.augmentation_path)
    for step, accuracy in ((10, 0.5), (20, 0.4)):
        directory = run.checkpoints_dir / f"step_{step:08d}"
        directory.mkdir(parents=True)
        facts = {"step": step, "samples_consumed": 8 * step, "accuracy_fraction": accuracy}
        (directory / "manifest.json").write_text(json.dumps({"manifest": facts}))
    run.export_dir.mkdir()
    facts = {"step": 20, "samples_consumed": 160}
    (run.export_dir / "config.json").write_text(json.dumps({"provenance": facts}))

    def attempt(number, *events):
        with Recorder(
            run,
            make_config("offline"),
            rank=0,
            attempt=number,
            resume_step=0,
            total_steps=100,
            steps_per_epoch=50,
        ) as recorder:
            for kind, fields in events:
                recorder.event(kind, **fields)

    saved = (
        "checkpoint_saved",
        {"step": 10, "directory": str(run.checkpoints_dir / "step_00000010")},
    )
    gone = "checkpoint_saved", {"step": 5, "directory": str(run.checkpoints_dir / "step_00000005")}
    failed = "checkpoint_failed", {"step": 15, "reason": "full"}
    attempt(1, gone, saved, failed, failed)
    resumed = "resumed", {"checkpoint": "step_00000020"}
    attempt(2, resumed, saved, ("exported", {"directory": str(run.export_dir)}))
    first, second = read_back(run)
    assert [text.split("\n")[0] for text in first.alerts] == [
        "no checkpoint of step 15, training goes on: full"
    ]
    assert second.alerts == []
    found = [
        (item["name"].partition("-")[0], item["metadata"]["step"], item["aliases"])
        for item in first.artifacts + second.artifacts
    ]
    assert found == [
        ("checkpoint", 10, ["best", "latest"]),
        ("checkpoint", 20, ["latest"]),
        ("export", 20, ["latest"]),
    ]
    assert first.artifacts[0]["references"] == [
        (run.checkpoints_dir / "step_00000010" / "manifest.json").as_uri()
    ]
    pictures = [row for file in (first, second) for row in file.rows if "augmentation/path" in row]
    assert len(pictures) == 1


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
        run=run,
        name="tiny",
        images_per_step=8,
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
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
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
    deadline = time.monotonic() + 60
    while not (files := read_back(run)) or files[0].exit_code is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [row["global_step"] for row in files[0].rows] == [10, 20], "30 may not be all there"
    assert files[0].exit_code == 1
    assert send_the_rest(run.wandb_dir, 1) is None
    rows = [row["global_step"] for file in read_back(run) for row in file.rows]
    assert rows == [10, 20, 30]
