"""A sample of the crash campaign: ranks killed at system calls of a save, see benchmarks/."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-qq", "-o", os.devnull, "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def sweep(*options: str) -> tuple[int, int]:
    """Kill points reached, and those after which the new checkpoint was there."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "crash_safety.py"), "--quick", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    row = re.search(r"\| quick \| (\d+) \| (\d+) \(100.0 %\) \| \d+ \| (\d+) \| 0 ", done.stdout)
    assert row is not None, done.stdout
    assert row[1] == row[2]
    return int(row[1]), int(row[3])


def test_kills_at_some_system_calls():
    points, _ = sweep("--stride", "12", *([] if can_trace() else ["--shim"]))
    assert points >= 6


@pytest.mark.slow
def test_kills_at_every_system_call():
    if not can_trace():
        pytest.skip("strace is missing, or may not trace here")
    points, new = sweep("--stride", "1")
    assert points >= 80
    assert 0 < new < points  # both sides of the commit were reached


@pytest.mark.slow
def test_kills_in_the_middle_of_every_write():
    points, new = sweep("--stride", "1", "--shim")
    assert points >= 80
    assert 0 < new < points
