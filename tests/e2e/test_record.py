"""The record after deaths: every step that counts is in it once, as if nobody had died."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from test_training import CONFIG, records, start, train  # isort: skip

DRIVER = Path(__file__).with_name("faulty_training.py")
# Checkpoints fall in mid-interval, and records between checkpoints.
SPACED = ("log.every_steps=3", "checkpoint.every_steps=5", "schedule.epochs=4")


@pytest.fixture
def config(tmp_path, small_shards):
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(shards=small_shards.path, classes=small_shards.classes))
    return path


def lines_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def die(config: Path, run: Path, by: signal.Signals, draws: random.Random) -> None:
    """Start the run, and end it at a moment after it has recorded something more."""
    process = start(config, "name=killed", *SPACED)
    before, deadline = lines_of(run), time.monotonic() + 120
    while lines_of(run) <= before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(draws.uniform(0, 0.5))
    os.killpg(process.pid, by)
    process.communicate(timeout=120)


@pytest.mark.slow
def test_any_death_costs_the_record_nothing(config, tmp_path):
    train(config, "name=twin", *SPACED)
    run, draws = tmp_path / "runs" / "killed", random.Random(7)
    for by in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        die(config, run, by, draws)
    command = [sys.executable, str(DRIVER), "raise", "17", "17", "--config", str(config)]
    raised = subprocess.run(
        [*command, "name=killed", *SPACED], cwd=tmp_path, capture_output=True, timeout=300
    )
    assert raised.returncode not in (0, 2), raised.stdout
    train(config, "name=killed", *SPACED)
    assert records(run) == records(tmp_path / "runs" / "twin")
