"""How far an attempt came, and what the next start finds out."""

import json
from pathlib import Path

from launch.ledger import Attempt
from launch.supervise.history import Traces, findings, last_step, lost_steps, phase_of
from pretrain.run_directory import RunDirectory


def made(tmp_path: Path, *, step: int, saved: int, attempt: int = 2) -> RunDirectory:
    run = RunDirectory(tmp_path)
    (run.checkpoints_dir / f"step_{saved:08d}").mkdir(parents=True)
    progress = {"attempt": attempt, "step": step, "state": "saving"}
    run.progress_path.write_text(json.dumps(progress))
    return run


def attempt(**fields: object) -> Attempt:
    values = {"number": 2, "job": "7", "host": "h", "start_time": 0.0, "restarts": 1, **fields}
    return Attempt(checkpoint_step_before=40, **values)  # pyright: ignore[reportArgumentType]


def test_how_far_an_attempt_came(tmp_path: Path) -> None:
    run = made(tmp_path, step=57, saved=50)
    assert last_step(run, 2) == 57
    assert phase_of(run, 2) == "save"
    assert last_step(run, 3) is None, "the progress of another attempt says nothing"
    assert phase_of(run, 3) is None
    run.attempt_dir(2).mkdir(parents=True)
    run.outcome_path(2).write_text('{"outcome": "stopped", "step": 58}')
    assert last_step(run, 2) == 58
    assert [lost_steps(57, 50), lost_steps(57, None), lost_steps(50, 60), lost_steps(None, 4)] == [
        7, 57, 0, None,
    ]  # fmt: skip


def test_a_killed_supervisor_is_explained_at_the_next_start(tmp_path: Path) -> None:
    run = made(tmp_path, step=57, saved=50)
    alone = findings(run, attempt(), Traces())
    assert (alone["cause"], alone["last_step"], alone["lost_steps"]) == ("vanished", 57, 7)
    assert (alone["culprit_node"], alone["phase"]) == (None, "save")
    traces = Traces(restarts=2, said="NODE FAILURE", lost_nodes=("n4",))
    lost = findings(run, attempt(), traces)
    assert (lost["cause"], lost["culprit_node"]) == ("node_lost", "n4")
    assert "restart 2" in lost["reason"]
    assert findings(run, attempt(), Traces(lost_nodes=("n4",)))["cause"] == "node_lost"
    assert findings(run, attempt(), Traces(restarts=2, said="PREEMPTION"))["cause"] == "preemption"
    assert "queue" not in findings(run, attempt(), Traces(restarts=1))["reason"]


def test_what_seemed_cancelled_and_came_back_was_requeued(tmp_path: Path) -> None:
    run = made(tmp_path, step=57, saved=50)
    ended = {"outcome": "stopped", "next": "stop"}
    assert findings(run, attempt(cause="cancelled", **ended), Traces(restarts=2)) == {
        "cause": "requeued"
    }
    assert findings(run, attempt(cause="cancelled", **ended), Traces(restarts=1)) == {}
    assert findings(run, attempt(cause="user_stop", **ended), Traces(restarts=2)) == {}
