"""What the ledger remembers, and how it counts attempts without progress."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from launch.ledger import (
    Attempt,
    append_end,
    append_ranks,
    append_start,
    attempts_without_progress,
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
