"""The supervisor against real processes that die, refuse, vanish and stop."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.ledger import Attempt, read_attempts
from pretrain.config.schema import RunConfig
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import is_alive
from pretrain.world import node_name

FAKE_RANK = Path(__file__).with_name("fake_rank.py")
ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "runs" / "first")


def make_run(path: Path, *, ranks: int = 2, **fields: object) -> RunDirectory:
    config = RunConfig.model_validate(
        {
            "name": path.name,
            "data": {"path": "/data"},
            "model": {"variant": "swin_t", "image_size": 32, "window_size": 4, "num_classes": 2},
            "optim": {"lr": 1e-3},
            "schedule": {"epochs": 1},
            "batch": {"global_size": 8, "micro_size_max": 4},
            "runs_dir": str(path.parent),
            **fields,
        }
    )
    run = RunDirectory(path)
    run.create(config, json.dumps({"nodes": 1, "ranks_per_node": ranks, "device": "cpu"}))
    run.code_path.mkdir(exist_ok=True)
    return run


@contextlib.contextmanager
def supervising(
    *runs: RunDirectory,
    steps: int,
    faults: tuple[str, ...] = (),
    step_seconds: float = 0.01,
    watchdog_seconds: float | None = None,
    margin_seconds: float | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A supervisor process at work on the runs, with fake ranks; killed in the end."""
    (path,) = {str(run.path) for run in runs} if len(runs) == 1 else ("",)
    bare = ["-S"] if watchdog_seconds is None else []
    command = [sys.executable, *bare, str(FAKE_RANK), path, str(steps), *faults]
    program = (
        "import json, sys; from launch.supervise import signs; "
        "from launch.supervise.supervisor import run_job; "
        f"signs.MARGIN_SECONDS = {margin_seconds} or signs.MARGIN_SECONDS; "
        "run_job(*json.loads(sys.argv[1]))"
    )
    arguments = json.dumps([[str(run.path) for run in runs], command])
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SUBMITIT"))}
    clean["FAKE_STEP_SECONDS"] = str(step_seconds)
    if watchdog_seconds is not None:
        clean |= {"FAKE_WATCHDOG_SECONDS": str(watchdog_seconds), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, arguments],
        cwd=ROOT,
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def step_of(run: RunDirectory) -> int:
    return (run.read_progress() or {}).get("step", 0)


def outcomes(run: RunDirectory) -> list[tuple[str | None, str | None]]:
    return [(attempt.outcome, attempt.next) for attempt in read_attempts(run)]


def events(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.events_path.read_text().splitlines()]


def last(run: RunDirectory) -> Attempt:
    return read_attempts(run)[-1]


def test_a_run_that_goes_well(run: RunDirectory) -> None:
    with supervising(run, steps=25) as process:
        code, output = finish(process)
    assert code == 0, output
    assert run.is_done()
    assert outcomes(run) == [("done", "done")]
    assert last(run).checkpoint_step_after == 25
    log = run.rank_log(1, 1).read_text()
    assert "rank 1 of 2 from step 0, attempt 1" in log
    assert "local 1 of 2" in log


def test_a_killed_rank_restarts_from_the_checkpoint(run: RunDirectory) -> None:
    with supervising(run, steps=40, faults=("kill:1:25",)) as process:
        code, output = finish(process)
    assert code == 0, output
    assert outcomes(run) == [("crashed", "restart"), ("done", "done")]
    first, second = read_attempts(run)
    assert first.culprit_rank == 1
    assert "rank 1 was killed by SIGKILL" in first.reason
    assert (first.cause, first.culprit_node, first.phase) == ("rank_died", node_name(), "step")
    assert (first.last_step, first.lost_steps) == (24, 4)
    assert (second.cause, second.last_step, second.lost_steps) == ("done", 40, 0)
    ended = [event for event in events(run) if event["event"] == "attempt_ended"]
    assert [event["cause"] for event in ended] == ["rank_died", "done"]
    assert ended[0]["culprit_rank"] == 1
    (alert,) = [event for event in events(run) if event["event"] == "alert"]
    assert (alert["about"], alert["step"]) == ("failure", 24)
    assert alert["text"] == f"attempt 1: {first.reason}; restarting"
    assert sum(event["event"] == "attempt_started" for event in events(run)) == 2
    assert not run.failure_path.exists()
    assert second.checkpoint_step_before is not None
    assert second.checkpoint_step_before >= 20
    assert f"from step {second.checkpoint_step_before}" in run.rank_log(2, 0).read_text()


def test_a_crash_loop_gives_up_and_shows_the_culprit(run: RunDirectory) -> None:
    run.metrics_path.touch()  # as a rank that came so far would
    with supervising(run, steps=40, faults=("raise:1:5:99",)) as process:
        code, output = finish(process)
    assert code == 70
    assert outcomes(run) == [("crashed", "restart")] * 2 + [("crashed", "give_up")]
    assert "3 attempts without a newer checkpoint" in last(run).reason
    assert "RuntimeError: planned at step 5" in output
    said = run.failure_path.read_text()
    assert "first: failed: a rank died (rank_died)\nculprit: rank 1" in said
    assert "last step: 4 (no checkpoint, 4 steps lost)" in said
    assert "RuntimeError: planned at step 5" in said
    report = run.report_path.read_text()
    assert 'class="state failed"' in report
    assert report.count("3 attempts without a newer checkpoint") >= 2, "alert and attempts"
    with supervising(run, steps=40, faults=("raise:1:5:3",)) as process:
        assert finish(process)[0] == 0
    assert not run.failure_path.exists()


@pytest.mark.slow
def test_the_same_step_again_gives_up_though_checkpoints_were_made(run: RunDirectory) -> None:
    with supervising(run, steps=40, faults=("inch:0:25:99",)) as process:
        code, _ = finish(process)
    assert code == 70
    assert [attempt.checkpoint_step_after for attempt in read_attempts(run)] == [21, 22, 23]
    assert last(run).next == "give_up"
    assert "3 attempts in a row ended at step 24" in last(run).reason
    assert "3 attempts in a row ended at step 24" in run.failure_path.read_text()


def test_the_stopped_rank_of_a_hang_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "frozen", ranks=3)
    with supervising(run, steps=30, faults=("freeze:1:15",), watchdog_seconds=1) as process:
        code, output = finish(process)
    assert code == 0, output
    first, second = read_attempts(run)
    assert (first.cause, first.culprit_rank, first.phase) == ("rank_hung", 1, "step")
    assert "rank 1 on" in first.reason
    assert "wrote no stacks" in first.reason
    assert first.last_step == 14
    assert second.outcome == "done"
    assert "meet" in run.stacks_path(1, 2).read_text()


@pytest.mark.slow
def test_the_rank_that_stands_elsewhere_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "hung", ranks=3)
    with supervising(run, steps=30, faults=("hang:2:15",), watchdog_seconds=4) as process:
        code, output = finish(process)
    assert code == 0, output
    first = read_attempts(run)[0]
    assert (first.cause, first.culprit_rank, first.phase) == ("rank_hung", 2, "step")
    assert "fail" in first.reason
    assert "while the others waited for it" in first.reason


@pytest.mark.slow
def test_a_run_whose_every_rank_is_stopped_is_noticed_from_outside(tmp_path: Path) -> None:
    run = make_run(tmp_path / "alone", ranks=1)
    with supervising(
        run,
        steps=30,
        faults=("freeze:0:15",),
        step_seconds=0.1,  # for the sign of life to tell the phase
        watchdog_seconds=1,
        margin_seconds=2,
    ) as process:
        code, output = finish(process)
    assert code == 0, output
    first = read_attempts(run)[0]
    assert (first.cause, first.culprit_rank, first.phase) == ("rank_hung", 0, "step")
    assert "no sign of life" in first.reason


@pytest.mark.slow
def test_ranks_that_never_begin_are_not_waited_for_without_end(tmp_path: Path) -> None:
    run = make_run(tmp_path / "late", cluster={"start_timeout_seconds": 2})
    with supervising(run, steps=10, faults=("idle:0:0", "idle:1:0")) as process:
        code, output = finish(process)
    assert code == 0, output
    first = read_attempts(run)[0]
    assert (first.cause, first.phase, first.last_step) == ("never_started", "join", None)


def test_an_unfit_machine_ends_the_run_with_the_reason(run: RunDirectory) -> None:
    with supervising(run, steps=10, faults=("bad_node:1:0",)) as process:
        code, output = finish(process)
    assert code == 70
    assert (last(run).cause, last(run).culprit_rank) == ("bad_node", 1)
    assert "rank 1 on here: a matrix product is wrong" in output
    assert "a matrix product is wrong" in run.failure_path.read_text()


def test_progress_starts_the_count_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path / "second", cluster={"max_attempts_without_progress": 2})
    faults = ("raise:0:15:1", "raise:0:16:2", "raise:0:25:3")
    with supervising(run, steps=30, faults=faults) as process:
        code, output = finish(process)
    assert code == 0, output
    assert [outcome for outcome, _ in outcomes(run)] == ["crashed"] * 3 + ["done"]


def test_bad_input_is_not_tried_again(run: RunDirectory) -> None:
    with supervising(run, steps=40, faults=("refuse:1:5:99",)) as process:
        code, _ = finish(process)
    assert code == 70
    assert outcomes(run) == [("bad_input", "give_up")]
    assert last(run).culprit_rank == 1


def test_leaving_without_an_outcome_is_a_crash(run: RunDirectory) -> None:
    with supervising(run, steps=20, faults=("forget:0:5", "forget:1:5")) as process:
        code, output = finish(process)
    assert code == 0, output
    assert outcomes(run) == [("crashed", "restart"), ("done", "done")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_saves_and_stops_and_the_next_job_resumes(
    run: RunDirectory, number: signal.Signals
) -> None:
    with supervising(run, steps=1000, step_seconds=0.02) as process:
        wait_until(lambda: step_of(run) >= 3, "steps")
        process.send_signal(number)
        code, output = finish(process)
    assert code == 75, output
    assert outcomes(run) == [("stopped", "stop")]
    saved = run.newest_checkpoint_step()
    assert saved == step_of(run)
    assert f"saved and stopped at step {saved}" in output
    assert saved is not None
    with supervising(run, steps=saved + 5) as process:
        assert finish(process)[0] == 0
    assert f"from step {saved}, attempt 2" in run.rank_log(2, 0).read_text()


def test_the_second_request_ends_at_once(run: RunDirectory, tmp_path: Path) -> None:
    stubborn = tmp_path / "stubborn.py"
    stubborn.write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(600)\n"
    )
    program = (
        "import sys; from launch.supervise.supervisor import run_job; "
        "run_job([sys.argv[1]], sys.argv[2:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(run.path), sys.executable, str(stubborn)], cwd=ROOT
    )
    try:
        wait_until(lambda: "deaf" in read(run.rank_log(1, 1)), "the ranks")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "asking" in read(run.attempt_dir(1) / "supervisor.log"), "asking")
        assert process.poll() is None
        process.send_signal(signal.SIGQUIT)
        assert process.wait(PATIENCE_SECONDS) == 75
    finally:
        process.kill()
        process.wait()
    assert last(run).reason == "stopped without saving"
    assert not any(is_alive(*rank) for rank in last(run).ranks)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_two_supervisors_never_run_one_directory(run: RunDirectory) -> None:
    with supervising(run, steps=1000, step_seconds=0.02) as one:
        wait_until(lambda: step_of(run) >= 2, "steps")
        with supervising(run, steps=1000) as two:
            time.sleep(2.5)
            assert two.poll() is None
            assert len(read_attempts(run)) == 1
        one.terminate()
        assert finish(one)[0] == 75


def test_ranks_save_when_their_supervisor_is_killed(run: RunDirectory) -> None:
    with supervising(run, steps=1000, step_seconds=0.02) as process:
        wait_until(lambda: step_of(run) >= 3 and last(run).ranks, "steps")
        process.kill()
        ranks = last(run).ranks
        assert len(ranks) == 2
        wait_until(lambda: not any(is_alive(*rank) for rank in ranks), "the ranks to leave")
    saved = run.newest_checkpoint_step()
    assert saved == step_of(run)
    assert outcomes(run) == [(None, None)]
    with supervising(run, steps=saved + 3) as process:
        assert finish(process)[0] == 0
    first, second = read_attempts(run)
    assert (first.number, second.number) == (1, 2)
    assert (first.outcome, first.cause, first.lost_steps) == (None, "vanished", 0)
    assert first.last_step == saved
    explained = [event for event in events(run) if event["event"] == "attempt_explained"]
    assert [event["cause"] for event in explained] == ["vanished"]


def test_a_finished_run_is_left_alone(run: RunDirectory) -> None:
    with supervising(run, steps=3) as process:
        finish(process)
    before = run.attempts_path.read_bytes()
    with supervising(run, steps=3) as process:
        code, output = finish(process)
    assert (code, run.attempts_path.read_bytes()) == (0, before)
    assert "already done" in output
