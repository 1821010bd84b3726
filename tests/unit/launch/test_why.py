"""What is said about runs in every state, from files alone."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launch.ledger import append_end, append_start, read_attempts
from launch.look_after.why import IN_WORDS, explain, explain_attempt, text
from launch.supervise.nodes import exclude_nodes
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import run_lock

COMMAND = ["python", "launch/slurm.py", "--config", "swin t", "--no-follow"]
TYPED = "python launch/slurm.py --config 'swin t'"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "small")
    run.path.mkdir()
    run.config_path.touch()
    run.environment_path.write_text(json.dumps({"command": COMMAND}))
    (run.checkpoints_dir / "step_00000040").mkdir(parents=True)
    return run


def end(run: RunDirectory, number: int, **fields: Any) -> None:
    append_start(run, number, job="7", host="h", checkpoint_step=None)
    values = {"outcome": "crashed", "next_action": "restart", "checkpoint_step": 40}
    values |= {"reason": "rank 3 on n2: killed", "culprit_rank": 3, "cause": "rank_died"}
    values |= {"culprit_node": "n2", "phase": "step", "last_step": 47, "lost_steps": 7}
    append_end(run, number, **(values | fields))
    run.attempt_dir(number).mkdir(parents=True, exist_ok=True)
    run.rank_log(number, 3).write_text("step 47\nBus error\n")


def test_a_failed_run(run: RunDirectory) -> None:
    end(run, 1)
    end(run, 2, next_action="give_up", reason="rank 3 on n2: killed; 2 attempts without")
    run.stacks_path(2, 3).write_text(
        'Thread 0x00007f (most recent call first):\n  File "/a/b.py", line 7 in wait\n'
    )
    exclude_nodes(run, ["n9"], "slow")
    found = explain_attempt(run, "failed", read_attempts(run))
    assert (found.cause, found.rank, found.node, found.phase) == ("rank_died", 3, "n2", "step")
    assert (found.last_step, found.saved_step, found.lost_steps) == (47, 40, 7)
    assert found.log == run.rank_log(2, 3)
    said = text(found)
    for line in (
        "small: failed: a rank died (rank_died)",
        "culprit: rank 3 on node n2",
        "last step: 47 (newest checkpoint 40, 7 steps lost)",
        "attempt 2: rank_died at step 47, 7 steps lost: rank 3 on n2: killed; 2 attempts without",
        "excluded: n9 (slow)",
        "  /a/b.py:7 wait",
        "  Bus error",
        f"next: find the cause in the log and mend it, then {TYPED}",
    ):
        assert line in said.splitlines()


def test_a_running_run_has_nothing_wrong_but_a_past(run: RunDirectory) -> None:
    end(run, 1)
    append_start(run, 2, job="7", host="h", checkpoint_step=40)
    with run_lock(run, "7") as held:
        assert held
        found = explain(run)
    assert (found.state, found.cause, found.lost_steps) == ("running", None, None)
    said = text(found)
    assert said.startswith("small: running, nothing is wrong")
    assert "attempt 1: rank_died at step 47" in said
    assert f"next: nothing; watch it with {TYPED} --follow" in said


@pytest.mark.parametrize(
    ("fields", "state", "words", "action"),
    [
        ({"outcome": "done", "next_action": "done", "cause": "done"}, "done", "", "nothing; it"),
        (
            {"outcome": "stopped", "next_action": "stop", "cause": "user_stop"},
            "stopped", "somebody asked it to stop", TYPED,
        ),
        ({"next_action": "requeue", "cause": "node_lost"}, "waiting", "node_lost", "nothing, it"),
        (
            {"outcome": "bad_input", "next_action": "give_up", "cause": "bad_input"},
            "failed", "the input was refused", "mend what is named above",
        ),
        ({"next_action": "give_up", "cause": "bad_node"}, "failed", "unfit", "have the node"),
        ({"next_action": "give_up", "cause": "storage"}, "failed", "disk", "make room"),
        ({"outcome": "stopped", "cause": None}, "stopped", "stop_signal", TYPED),
    ],
)  # fmt: skip
def test_other_states(
    run: RunDirectory, fields: dict[str, Any], state: Any, words: str, action: str
) -> None:
    end(run, 1, **fields)
    found = explain_attempt(run, state, read_attempts(run))
    first, *_, last = text(found).splitlines()
    assert first.startswith(f"small: {state}")
    assert words in first
    assert last.startswith(f"next: {action}")


def test_a_lost_run_and_one_that_was_never_launched(run: RunDirectory, tmp_path: Path) -> None:
    append_start(run, 1, job="7", host="h", checkpoint_step=None)
    job = {"executor": "local", "job_id": "1", "host": os.uname().nodename, "time": 0.0}
    run.job_path.write_text(json.dumps(job | {"log": "x", "ticks": 1}))
    run.progress_path.write_text('{"attempt": 1, "step": 55, "state": "training"}')
    found = explain(run)
    assert (found.state, found.cause, found.phase) == ("lost", "vanished", "step")
    assert (found.last_step, found.lost_steps) == (55, 15)
    assert found.next_action == TYPED
    never = explain(RunDirectory(tmp_path / "none"))
    assert (never.state, never.cause, never.log) == ("idle", None, None)
    assert "next: python launch/slurm.py --config none" in text(never)


def test_every_cause_has_words() -> None:
    from typing import get_args

    from launch.ledger import Cause

    assert set(IN_WORDS) == set(get_args(Cause))
