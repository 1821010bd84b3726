"""What ``list`` and ``status`` show of runs in every state, sound or not."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fabricated import (
    add_attempt,
    add_checkpoint,
    add_progress,
    make_run,
)

from launch import scheduler
from launch.ledger import append_end, append_start
from launch.look_after.listing import list_runs, show_status
from launch.runs import main
from launch.scheduler import JobState
from pretrain.errors import LaunchError
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import run_lock

ROOT = Path(__file__).parents[3]
KEYS = {
    "name", "path", "state", "detail", "doing", "problems", "executor", "job", "nodes",
    "launched_time", "step", "total_steps", "epoch", "epochs", "eta_seconds", "images_per_second",
    "images_per_second_per_device", "data_wait_fraction", "loss", "accuracy_fraction",
    "eval_top1_fraction", "probe_top1_fraction", "progress_age_seconds", "attempts",
    "checkpoint_step", "checkpoint_age_seconds", "unsaved_steps", "unsaved_seconds",
}  # fmt: skip
"""What scripts rely on; `status` has these and `MORE_KEYS`."""
MORE_KEYS = {"disk_bytes", "attempts_made"}
WHY_KEYS = {
    "run", "state", "cause", "rank", "node", "phase", "last_step", "saved_step", "lost_steps",
    "next_action", "log", "details",
}  # fmt: skip
ATTEMPT_KEYS = {
    "attempt", "job", "host", "start_time", "checkpoint_step_before", "checkpoint_step_after",
    "outcome", "reason", "culprit_rank", "next", "nodes", "restarts", "cause", "culprit_node",
    "phase", "last_step", "lost_steps", "end_time",
}  # fmt: skip


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, JobState]:
    """What Slurm says when asked about many jobs; about a single one it must not be asked."""
    said: dict[str, JobState] = {}
    monkeypatch.setattr(scheduler, "why_no_slurm", lambda: None)
    monkeypatch.setattr(
        scheduler, "job_states", lambda ids: {key: said[key] for key in ids if key in said}
    )
    monkeypatch.setattr(scheduler, "job_state", lambda job: pytest.fail(f"asked about {job}"))
    return said


def listed(runs_dir: Path, capsys: pytest.CaptureFixture[str], *, active: bool = False) -> dict:
    assert list_runs(runs_dir, active=active, as_json=True) == 0
    return json.loads(capsys.readouterr().out)


def status_of(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> dict:
    assert show_status(run, as_json=True) == 0
    return json.loads(capsys.readouterr().out)


def test_the_keys_are_those_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    add_attempt(run, 1, step=100)
    content = listed(tmp_path, capsys)
    assert content.keys() == {"runs_dir", "not_runs", "runs"}
    assert content["runs"][0].keys() == KEYS
    status = status_of(run, capsys)
    assert status.keys() == KEYS | MORE_KEYS
    assert status["attempts_made"][0].keys() == ATTEMPT_KEYS
    assert main(["why", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == WHY_KEYS
    documented = (ROOT / "docs" / "launching.md").read_text()
    section = documented[documented.index("## Living with runs") :]
    for key in KEYS | MORE_KEYS | ATTEMPT_KEYS | WHY_KEYS | {"runs_dir", "not_runs", "runs"}:
        assert f"`{key}`" in section, key


def test_a_running_run_in_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    add_attempt(run, 1, outcome=None)
    add_progress(run, time=time.time() - 600)
    manifest = add_checkpoint(run, 100) / "manifest.json"
    os.utime(manifest, (time.time() - 1800,) * 2)
    with run_lock(run, "7"):
        status = status_of(run, capsys)
        assert show_status(run, as_json=False) == 0
    assert (status["state"], status["doing"], status["nodes"]) == ("running", "training", ["n1"])
    assert (status["step"], status["total_steps"], status["attempts"]) == (120, 1000, 1)
    assert 2990 < status["eta_seconds"] <= 3000  # an hour, as was said ten minutes ago
    assert 1800 <= status["checkpoint_age_seconds"] < 1810
    assert (status["unsaved_steps"], status["unsaved_seconds"]) == (20, 20 * 8 / 80)
    assert status["disk_bytes"] > 4096
    text = capsys.readouterr().out
    assert "first: running, training\n" in text
    assert "120 of 1,000 (12.0 %), epoch 1.50 of 12" in text
    assert "80 images/s, 40 of each device; 5.0 % of the time waiting for data" in text
    assert re.search(r"accuracy +62.50 %", text)
    assert "step 100, 30 min ago; 20 steps, 0:00:02 of training, at risk" in text
    assert re.search(
        r"time left +0:(50:00|49:\d\d) \(until .* evaluations and saves counted\)", text
    )
    assert "last sign  10 min ago" in text.replace("   ", "  ")


def test_what_an_attempt_before_said_of_the_end_holds_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    add_attempt(run, 1)
    add_attempt(run, 2, outcome=None)
    add_progress(run, attempt=1)
    with run_lock(run, "7"):
        status = status_of(run, capsys)
    assert (status["step"], status["eta_seconds"], status["doing"]) == (120, None, None)


def test_slurm_is_asked_once_for_all(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    answers: dict[str, JobState],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number, name in enumerate(("one", "two", "three", "four"), 1):
        run = make_run(tmp_path, name, executor="slurm", job=str(number))
        os.utime(run.config_path, (1000 + number,) * 2)
    add_attempt(RunDirectory(tmp_path / "one"), 1, outcome=None, job="1")
    add_progress(RunDirectory(tmp_path / "one"))
    answers["1"] = JobState("RUNNING", "None", "x")
    answers["2"] = JobState("PENDING", "Resources", "N/A")
    answers["3"] = JobState("CANCELLED", "None", "N/A")
    asked: list[list[str]] = []
    answer = scheduler.job_states
    monkeypatch.setattr(
        scheduler, "job_states", lambda ids: [asked.append(sorted(ids)), answer(ids)][1]
    )
    found = {item["name"]: item for item in listed(tmp_path, capsys)["runs"]}
    assert asked == [["1", "2", "3", "4"]]
    assert list(found) == ["four", "three", "two", "one"], "the one launched last first"
    states = {name: item["state"] for name, item in found.items()}
    assert states == {"one": "running", "two": "waiting", "three": "stopped", "four": "lost"}
    assert found["one"]["nodes"] == ["n1"]
    assert found["two"]["detail"] == "pending (Resources)"
    assert [i["name"] for i in listed(tmp_path, capsys, active=True)["runs"]] == ["two", "one"]


def test_a_silent_slurm_is_said_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, "here")
    add_progress(make_run(tmp_path, "there", executor="slurm"))
    monkeypatch.setattr(scheduler, "why_no_slurm", lambda: "no Slurm controller answers")
    found = {item["name"]: item for item in listed(tmp_path, capsys)["runs"]}
    assert (found["here"]["state"], found["there"]["state"]) == ("lost", "unknown")
    assert found["there"]["step"] == 120, "what the files say is shown all the same"
    list_runs(tmp_path, active=False, as_json=False)
    assert "there: no Slurm controller answers" in capsys.readouterr().out

    monkeypatch.setattr(scheduler, "why_no_slurm", lambda: None)
    monkeypatch.setattr(scheduler, "job_states", refuse)
    monkeypatch.setattr(scheduler, "job_state", refuse)
    assert {i["state"] for i in listed(tmp_path, capsys)["runs"]} == {"lost", "unknown"}


def refuse(_what: object) -> None:
    raise LaunchError("squeue: timed out")


DAMAGES = {
    "no config": (lambda run: run.config_path.unlink(), "broken", "config.yaml: missing"),
    "old config": (
        lambda run: run.config_path.write_text(run.config_path.read_text() + "bygone: 1\n"),
        "lost",
        "of another version of this program (bygone)",
    ),
    "torn config": (
        lambda run: run.config_path.write_text("name: [x\n"),
        "lost",
        "config.yaml: damaged",
    ),
    "empty config": (lambda run: run.config_path.write_text(""), "lost", "config.yaml: damaged"),
    "no plan": (lambda run: run.plan_path.unlink(), "lost", "plan.json: missing"),
    "torn plan": (lambda run: run.plan_path.write_text('{"a"'), "lost", "plan.json: damaged"),
    "odd plan": (lambda run: run.plan_path.write_text('{"global_batch": "x"}'), "lost", None),
    "torn progress": (
        lambda run: run.progress_path.write_bytes(b"\xff{"),
        "lost",
        "progress.json: damaged",
    ),
    "odd progress": (
        lambda run: run.progress_path.write_text(
            '{"step": "x", "time": null, "eta_seconds": [], "attempt": {}, "loss": NaN}'
        ),
        "lost",
        None,
    ),
    "torn ledger": (
        lambda run: run.attempts_path.write_bytes(b'{"event": "start", "att\n\xff\x00\n[]\n'),
        "lost",
        "attempts.jsonl: 3 of 3 lines are damaged",
    ),
    "odd ledger": (
        lambda run: run.attempts_path.write_text(
            '{"event": "start", "attempt": 1, "time": "x", "job": [], "host": 5, '
            '"checkpoint_step_before": {}}\n'
        ),
        None,
        "attempts.jsonl: 1 attempts are damaged",
    ),
    "ledger is a directory": (lambda run: run.attempts_path.mkdir(), "broken", "Is a directory"),
    "odd job": (lambda run: run.job_path.write_text('{"id": 1}'), "broken", "job.json: damaged"),
    "odd job types": (
        lambda run: run.job_path.write_text(
            '{"executor": "local", "job_id": "x", "host": 1, "time": "y", "log": 0, "ticks": 3}'
        ),
        "broken",
        "contradict",
    ),
    "renamed": (
        lambda run: run.config_path.write_text(
            run.config_path.read_text().replace("name: hurt", "name: other")
        ),
        "lost",
        "of a run named other",
    ),
    "checkpoints is a file": (lambda run: run.checkpoints_dir.write_text(""), "lost", None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_directory_is_shown_with_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    hurt, sound = make_run(tmp_path, "hurt"), make_run(tmp_path, "sound")
    add_attempt(sound, 1)
    do, state, problem = DAMAGES[damage]
    do(hurt)
    found = {item["name"]: item for item in listed(tmp_path, capsys)["runs"]}
    assert found["sound"]["problems"] == []
    assert state in (None, found["hurt"]["state"])
    if problem is not None:
        assert any(problem in text for text in found["hurt"]["problems"]), found["hurt"]
    assert list_runs(tmp_path, active=False, as_json=False) == 0
    shown = capsys.readouterr().out
    assert problem is None or re.search(rf"^hurt: .*{re.escape(problem)}", shown, re.MULTILINE)
    assert show_status(hurt, as_json=False) == 0
    assert problem is None or f"{problem}" in capsys.readouterr().out


def test_a_run_that_vanishes_meanwhile_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show_status(RunDirectory(tmp_path / "gone"), as_json=False) == 0
    assert "gone: broken: no such file or directory" in capsys.readouterr().out


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_the_runs_of_another_user_are_shown_as_far_as_they_can_be_read(tmp_path: Path) -> None:
    private, readable = make_run(tmp_path, "private"), make_run(tmp_path, "readable")
    readable.path.chmod(0o755)
    add_attempt(readable, 1)
    with run_lock(readable, "7"):
        pass
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o055)
    assert private.path.stat().st_mode & 0o077 == 0
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from launch.runs import main\n"
        "os.setuid(65534)\n"
        f"main(['list', '--runs-dir', {str(tmp_path)!r}])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "private: belongs to user root" in answer.stdout
    assert re.search(r"^private +unknown", answer.stdout, re.MULTILINE)
    assert re.search(r"^readable +unknown +- +1,000 ", answer.stdout, re.MULTILINE)
    assert answer.stdout.count("readable: not all of it may be read\n") == 1


def test_status_tells_how_attempts_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    append_start(run, 1, job="7", host="n1", checkpoint_step=None, nodes=["n1", "n2"])
    append_end(
        run,
        1,
        outcome="crashed",
        next_action="restart",
        checkpoint_step=1000,
        reason="rank 3 on n2: killed",
        culprit_rank=3,
        cause="rank_died",
        lost_steps=1234,
    )
    nodes = [f"n{number}" for number in range(1, 11)]
    append_start(run, 2, job="7", host="n1", checkpoint_step=1000, nodes=nodes)
    show_status(run, as_json=False)
    said = capsys.readouterr().out
    assert "nodes       n1, n2, n3, n4, n5, n6, n7, n8 and 2 more" in said
    assert re.search(
        r"1  .* 0:00:00  rank_died  step 0 to 1,000  rank 3 on n2: killed; 1,234 steps lost; "
        r"restarting\n",
        said,
    )
    assert re.search(r"2  .*  no end +step 1,000 to \?\n", said)


def test_no_runs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_runs(tmp_path, active=False, as_json=False)
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    (tmp_path / "notes").mkdir()
    make_run(tmp_path)
    list_runs(tmp_path, active=True, as_json=False)
    assert capsys.readouterr().out == f"no active runs in {tmp_path}\n"
    list_runs(tmp_path, active=False, as_json=False)
    assert "no runs: notes\n" in capsys.readouterr().out
