"""What is shown about a run."""

import contextlib
import json
import signal
from pathlib import Path

import pytest

from launch.ledger import Attempt
from launch.look_after import follow as follow_module
from launch.look_after.follow import ending
from launch.status import Status
from launch.submit import Job
from pretrain.run_directory import RunDirectory


@pytest.fixture
def job(tmp_path: Path) -> Job:
    log = tmp_path / "supervisor_log.out"
    log.write_text("ModuleNotFoundError: nothing\n")
    return Job("local", "7", "h", 0.0, str(log))


@pytest.mark.parametrize("watch_only", [True, False])
def test_ctrl_c_before_the_first_look_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    watch_only: bool,
) -> None:
    run = RunDirectory(tmp_path / "first")
    run.path.mkdir()
    run.config_path.touch()
    seen = [signal.SIGINT]
    asked: list[bool] = []

    def stop(run: RunDirectory, status: Status, *, now: bool) -> bool:
        asked.append(now)
        seen.append(signal.SIGINT)
        return len(asked) < 2

    monkeypatch.setattr(follow_module, "_interrupts", lambda: contextlib.nullcontext(seen))
    monkeypatch.setattr(follow_module, "stop_local", stop)
    monkeypatch.setattr(
        follow_module,
        "look",
        lambda run, queue: Status("lost" if asked[1:] else "running", "", None, None),
    )
    assert follow_module.follow([run], watch_only=watch_only) == (130 if watch_only else 70)
    assert asked == ([] if watch_only else [False, True])
    assert ("python launch/runs.py stop" in capsys.readouterr().out) == watch_only


def test_a_failure_shows_the_culprits_last_lines(tmp_path: Path, job: Job) -> None:
    run = RunDirectory(tmp_path / "first")
    run.attempt_dir(2).mkdir(parents=True)
    run.rank_log(2, 3).write_text("\n".join(f"line {i}" for i in range(100)))
    attempt = Attempt(2, "7", "h", 0.0, None, culprit_rank=3)
    lines = ending(run, Status("failed", "why", job, attempt))
    assert lines[0] == f"last lines of {run.rank_log(2, 3)}:"
    assert lines[1:21] == [f"  line {i}" for i in range(80, 100)]
    assert "first: failed: why" in lines
    assert lines[-1] == "next: the same command goes on from the start"


def test_a_lost_job_shows_what_its_supervisor_said(tmp_path: Path, job: Job) -> None:
    run = RunDirectory(tmp_path / "first")
    (run.checkpoints_dir / "step_00000040").mkdir(parents=True)
    earlier = Attempt(1, "6", "h", 0.0, None)
    lines = ending(run, Status("lost", "gone", job, earlier))
    assert lines[1] == "  ModuleNotFoundError: nothing"
    assert lines[-1] == "next: the same command goes on from step 40"


def test_refused_input_is_to_be_mended_first(tmp_path: Path, job: Job) -> None:
    run = RunDirectory(tmp_path / "first")
    refused = Attempt(1, job.job_id, "h", 0.0, None, outcome="bad_input", next="give_up")
    lines = ending(run, Status("failed", "rank 0 exited with code 2 (bad input)", job, refused))
    assert lines[-1] == (
        "next: mend what is named above, then the same command goes on from the start"
    )


def test_a_finished_run_names_what_exists(tmp_path: Path, job: Job) -> None:
    run = RunDirectory(tmp_path / "first")
    run.path.mkdir()
    status = Status("done", "done at step 5", job, None)
    assert ending(run, status) == ["first: done at step 5", f"run directory: {run.path}"]
    run.report_path.touch()
    run.export_dir.mkdir()
    for attempt in (1, 2):
        (run.wandb_dir / f"offline-run-{attempt}").mkdir(parents=True)
    run.progress_path.write_text('{"state": "done", "eval_top1_fraction": 0.8125}')
    assert ending(run, status)[2:] == [
        f"report: {run.report_path}",
        f"exported weights: {run.export_dir}",
        "accuracy: top-1 81.25 %",
        f"to Weights & Biases: wandb sync {run.wandb_dir}/offline-run-*",
        "next: start another run from these weights with init_from=first, or train on your own "
        "images (README.md, Train)",
    ]


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        ({"eval_top1_fraction": None, "probe_top1_fraction": 0.25}, "probe top-1 25.00 %"),
        (
            {"eval_top1_fraction": 0.5, "probe_top1_fraction": 0.25},
            "top-1 50.00 %, probe top-1 25.00 %",
        ),
    ],
)
def test_a_finished_run_tells_the_accuracy_of_its_probe(
    tmp_path: Path, job: Job, progress: dict[str, float | None], said: str
) -> None:
    run = RunDirectory(tmp_path / "first")
    run.path.mkdir()
    run.progress_path.write_text(json.dumps({"state": "done", **progress}))
    lines = ending(run, Status("done", "done at step 5", job, None))
    assert lines[2:] == [f"accuracy: {said}"]


def test_a_finished_run_suggests_what_starts_from_it_but_not_what_follows_anyway(
    tmp_path: Path, job: Job
) -> None:
    run = RunDirectory(tmp_path / "demo_pretrain")
    run.export_dir.mkdir(parents=True)
    status = Status("done", "done at step 5", job, None)
    suggestion = "next: python launch/slurm.py --config demo_finetune"
    assert ending(run, status)[-1] == suggestion
    assert suggestion not in ending(run, status, ["demo_pretrain", "demo_finetune"])
