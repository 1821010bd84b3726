"""What a supervisor reads of its Slurm job, without Slurm."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import scheduler
from launch.supervise import allocation
from launch.supervise.allocation import Allocation, slowest_save_seconds
from pretrain.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("*** JOB 3 ON n2 CANCELLED AT 2026-11-22T22:05:43 DUE TO PREEMPTION ***", "PREEMPTION"),
        (
            "*** JOB 5_1 ON n2 CANCELLED AT 2026-11-22T22:05:56 DUE TO JOB REQUEUE ***",
            "JOB REQUEUE",
        ),
        (
            "*** JOB 9 ON n2 CANCELLED AT 2026-11-22T22:06:37 DUE TO NODE FAILURE, SEE SLURMCTLD "
            "LOG FOR DETAILS ***",
            "NODE FAILURE",
        ),
        ("*** JOB 3 ON n2 CANCELLED AT 2026-11-22T22:05:43 DUE TO TIME LIMIT ***", "TIME LIMIT"),
    ],
)
def test_what_slurmd_says_is_understood(line: str, said: str) -> None:
    assert allocation._ENDED_BY.findall(f"slurmstepd-n2: error: {line}\n") == [said]


def test_a_plain_cancel_gives_no_reason() -> None:
    line = "slurmstepd-n2: error: *** JOB 6 ON n2 CANCELLED AT 2026-11-22T22:06:07 ***"
    assert allocation._ENDED_BY.findall(line) == []


@pytest.mark.parametrize(
    ("seconds", "warned"),
    [(4.0, []), (60.0, ["KillWait"]), (400.0, ["cluster.signal_lead_seconds", "KillWait"])],
)
def test_a_save_that_takes_too_long_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, warned: list[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.setattr(scheduler, "node_names", lambda _: ("n1", "n2"))
    monkeypatch.setattr(scheduler, "kill_wait_seconds", lambda: 30)
    run = RunDirectory(tmp_path)
    lines = [{"step": 1, "perf/save_write_seconds": seconds}, {"step": 2, "train/loss": 1.0}]
    lines.append({"step": 3, "perf/save_write_seconds": 1.0})
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert slowest_save_seconds(run) == seconds
    config: Any = SimpleNamespace(cluster=SimpleNamespace(signal_lead_seconds=180))
    warnings = Allocation(run, config, "7").warnings()
    assert len(warnings) == len(warned)
    for warning, word in zip(warnings, warned, strict=True):
        assert word in warning


def test_a_run_that_never_saved_is_not_warned_about(tmp_path: Path) -> None:
    assert slowest_save_seconds(RunDirectory(tmp_path)) == 0.0
