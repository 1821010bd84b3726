"""What the ledger remembers, and how it counts attempts without progress."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from launch.ledger import (
    Attempt,
    append_end,
    append_finding,
    append_ranks,
    append_start,
    attempt_before,
    attempts_without_progress,
    crashes_at_step,
    read_attempts,
)
from pretrain.run_directory import RunDirectory


def attempt(number: int, before: int | None, after: int | None, **fields: Any) -> Attempt:
    values = {"job": "7", "host": "h", "start_time": 0.0, "outcome": "crashed", "next": "restart"}
    return Attempt(
        number=number, checkpoint_step_before=before, checkpoint_step_after=after, **values | fields
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert read_attempts(run) == []
    append_start(run, 1, job="7", host="h", checkpoint_step=None)
    append_ranks(run, 1, [(10, 99), (11, 99)])
    (started,) = read_attempts(run)
    assert (started.outcome, started.ranks, started.is_final) == (None, ((10, 99), (11, 99)), False)
    append_end(
        run,
        1,
        outcome="crashed",
        next_action="give_up",
        checkpoint_step=20,
        reason="why",
        culprit_rank=1,
    )
    (ended,) = read_attempts(run)
    assert ended.start_time == started.start_time
    assert (ended.outcome, ended.next, ended.reason) == ("crashed", "give_up", "why")
    assert (ended.culprit_rank, ended.checkpoint_step_after) == (1, 20)
    assert ended.is_final


def test_a_torn_line_costs_itself_only(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    append_start(run, 1, job="7", host="h", checkpoint_step=None)
    with run.attempts_path.open("a") as file:
        file.write('{"event": "end", "attempt": 1, "outc')
    append_start(run, 2, job="7", host="h", checkpoint_step=5)
    assert [item.number for item in read_attempts(run)] == [1, 2]


def test_causes_and_findings_are_kept_and_told(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    append_start(run, 1, job="7", host="h", checkpoint_step=None, nodes=["n1", "n2"], restarts=0)
    append_finding(run, 1, cause="node_lost", culprit_node="n2", lost_steps=4)
    (found,) = read_attempts(run)
    assert (found.nodes, found.restarts, found.outcome) == (("n1", "n2"), 0, None)
    assert (found.cause, found.culprit_node, found.lost_steps) == ("node_lost", "n2", 4)
    told = [json.loads(line) for line in run.events_path.read_text().splitlines()]
    assert [event["event"] for event in told] == ["attempt_started", "attempt_explained"]
    assert told[1]["culprit_node"] == "n2"


def test_a_ledger_of_an_older_version_is_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    start = {"event": "start", "attempt": 1, "time": 5.0, "job": "7", "host": "h"}
    end = {"event": "end", "attempt": 1, "time": 6.0, "outcome": "crashed", "next": "restart"}
    end |= {"checkpoint_step_after": 4, "reason": "why", "culprit_rank": 1}
    lines = [json.dumps(start | {"checkpoint_step_before": None}), json.dumps(end)]
    run.attempts_path.write_text("\n".join(lines) + "\n")
    (found,) = read_attempts(run)
    assert (found.cause, found.last_step, found.end_time) == (None, None, 6.0)


def test_a_job_that_was_submitted_to_go_on_continues_the_count() -> None:
    first = attempt(1, 10, 10, job="7", next="resubmit")
    second = attempt(2, 10, 10, job="8")
    assert attempts_without_progress([first, second], job="8", checkpoint_step=10) == 2
    assert attempt_before([first], job="8") == first
    assert attempt_before([attempt(1, 10, 10)], job="8") is None
    bad_node = attempt(2, 10, 10, cause="bad_node", next="requeue")
    before = attempt(1, 10, 10)
    assert attempts_without_progress([before, bad_node], job="7", checkpoint_step=10) == 1


def test_crashes_at_the_same_step_are_counted() -> None:
    crash = {"cause": "rank_died", "last_step": 24}
    attempts = [attempt(1, 0, 9, cause="rank_died", last_step=12)]
    attempts += [attempt(2, 9, 10, **crash), attempt(3, 10, 11, **crash)]
    assert crashes_at_step(attempts, job="7", step=24) == 2
    assert crashes_at_step(attempts, job="7", step=25) == 0
    assert crashes_at_step(attempts, job="7", step=None) == 0
    stopped = attempt(4, 11, 12, cause="preemption", last_step=24)
    assert crashes_at_step([*attempts, stopped], job="7", step=24) == 0


def test_counting() -> None:
    def count(*attempts: Attempt, now: int | None, job: str = "7") -> int:
        return attempts_without_progress(list(attempts), job=job, checkpoint_step=now)

    assert count(now=None) == 0
    assert count(attempt(1, None, None), attempt(2, None, None), now=None) == 2
    assert count(attempt(1, None, 10), attempt(2, 10, 10), now=10) == 1
    assert count(attempt(1, None, 10), now=10) == 0
    assert count(attempt(1, None, None), now=None, job="8") == 0
    stopped = attempt(1, None, None, outcome="stopped", next="stop")
    assert count(stopped, attempt(2, None, None), now=None) == 1
    put_back = attempt(1, 10, 10, outcome="stopped", next="requeue")
    assert count(put_back, now=10) == 1
    taken = attempt(2, None, None, cause="preemption", next="requeue")
    assert count(attempt(1, None, None), taken, attempt(3, None, None), now=None) == 2
    vanished = attempt(1, 10, None, outcome=None, next=None)
    assert count(vanished, now=10) == 1
    assert count(vanished, now=20) == 0
    assert count(vanished, attempt(2, 20, 20), now=20) == 1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_the_count_is_the_run_of_bad_ends_since_progress(steps: list[tuple[bool, bool]]) -> None:
    attempts, checkpoint, expected = [], 0, 0
    for number, (progressed, vanished) in enumerate(steps, start=1):
        before = checkpoint
        checkpoint += 10 * progressed
        expected = 0 if progressed else expected + 1
        ending = {"outcome": None, "next": None} if vanished else {}
        after = None if vanished else checkpoint
        attempts.append(attempt(number, before, after, **ending))
    assert attempts_without_progress(attempts, job="7", checkpoint_step=checkpoint) == expected
