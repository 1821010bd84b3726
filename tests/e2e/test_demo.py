"""The demo, by the command in the README: the whole road, interrupted and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = ("schedule.epochs=3", "schedule.warmup_epochs=0.5", "checkpoint.every_steps=20")


def launch(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "launch/slurm.py"), "--config", "demo"]
    return subprocess.Popen(
        [*command, "--cluster", "local", *overrides],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes_of(folder: Path) -> list[int]:
    """Every process that works in the folder or was told about it."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                cwd = str((process / "cwd").readlink())
                told = (process / "cmdline").read_bytes().decode()
            except OSError:
                continue
            if cwd.startswith(str(folder)) or str(folder) in told:
                found.append(int(process.name))
    return found


def pull_the_plug(folder: Path) -> None:
    while left := processes_of(folder):
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


def accuracy(run: Path) -> float:
    progress = json.loads((run / "progress.json").read_text())
    assert progress["state"] == "done"
    return progress["eval_top1_fraction"]


def check_results(folder: Path, output: str) -> tuple[float, float]:
    pretrained, tuned = (folder / "runs" / f"demo_{part}" for part in ("pretrain", "finetune"))
    for run in (pretrained, tuned):
        assert (run / "report.html").is_file()
        assert (run / "export" / "model.safetensors").is_file()
        for path in (run, run / "report.html", run / "export"):
            assert str(path) in output
    classes = json.loads((tuned / "export" / "config.json").read_text())["classes"]
    assert len(classes) == 6
    assert all(name.startswith("n") and len(name) == 9 for name in classes)
    assert "resized" in (tuned / "events.jsonl").read_text()
    assert "mapped: 6 classes by id, 0 from zeros" in (tuned / "events.jsonl").read_text()
    return accuracy(pretrained), accuracy(tuned)


@pytest.mark.slow
def test_the_demo_survives_a_pulled_plug(tmp_path):
    first = launch(tmp_path, *SHORT)
    run = tmp_path / "runs" / "demo_pretrain"
    deadline = time.monotonic() + 300
    while not any(run.glob("checkpoints/step_*[0-9]")):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pull_the_plug(tmp_path)
    first.communicate()

    second = launch(tmp_path, *SHORT)
    output, _ = second.communicate(timeout=600)
    assert second.returncode == 0, output
    assert "resumed" in (run / "events.jsonl").read_text()
    pretrained, tuned = check_results(tmp_path, output)
    assert pretrained > 2 / 12  # twice chance after three epochs
    assert tuned > 2 / 6

    third = launch(tmp_path, *SHORT)
    output, _ = third.communicate(timeout=60)
    assert third.returncode == 0, output
    check_results(tmp_path, output)
    assert not processes_of(tmp_path)


@pytest.mark.slow
def test_the_demo_learns(tmp_path):
    process = launch(tmp_path)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    pretrained, tuned = check_results(tmp_path, output)
    assert pretrained > 0.7
    assert tuned > 0.7
    promised = (ROOT / "README.md").read_text().partition("ends like this:\n\n```\n")[2]
    promised = promised.partition("\n```")[0].splitlines()
    assert len(promised) == 8
    for line, shown in zip(promised, output.splitlines()[-8:], strict=True):
        assert shown.startswith(line.partition(": ")[0] + ": "), (line, shown)
