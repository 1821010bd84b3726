"""What each end of an attempt is taken for, and what follows from it."""

from dataclasses import replace
from typing import Any

import pytest

from launch.supervise.decide import Facts, Failure, JobFacts, decide

KILLED = Failure(3, "rank 3 was killed by SIGKILL", "rank_died", "n2", "step")
HUNG = replace(KILLED, cause="rank_hung")
BAD = replace(KILLED, cause="bad_node")
LOST = Failure(None, "Slurm lost node n2", "node_lost", "n2")
ABSENT = Failure(None, "rank 3 was not launched within 300 s", "never_started")
JOB = JobFacts(seconds_left=10_000.0, lead_seconds=180.0, excludable=1)
TAKEN = replace(JOB, state="COMPLETING")


def local(**facts: Any) -> Facts:
    return Facts(**{"progressed": True, **facts})


def slurm(job: JobFacts = JOB, **facts: Any) -> Facts:
    return local(job=job, **facts)


STOPPED = {"intent": "stopped", "intent_step": 7}
TABLE = [
    # What was seen; outcome, cause, next.
    (local(intent="done", intent_step=9), "done", "done", "done"),
    (local(failure=KILLED), "crashed", "rank_died", "restart"),
    (local(failure=HUNG), "crashed", "rank_hung", "restart"),
    (local(failure=KILLED, intent="done"), "crashed", "rank_died", "restart"),
    (local(failure=replace(KILLED, cause="storage")), "crashed", "storage", "restart"),
    (local(failure=replace(KILLED, cause="bad_input")), "bad_input", "bad_input", "give_up"),
    (local(failure=BAD), "crashed", "bad_node", "give_up"),
    (local(failure=ABSENT), "crashed", "never_started", "restart"),
    (local(), "crashed", "rank_died", "restart"),
    (local(**STOPPED), "stopped", "user_stop", "stop"),
    (local(**STOPPED, asked=True), "stopped", "user_stop", "stop"),
    (local(failure=KILLED, asked=True), "stopped", "user_stop", "stop"),
    (local(failure=KILLED, progressed=False, vain=1), "crashed", "rank_died", "restart"),
    (local(failure=KILLED, progressed=False, vain=2), "crashed", "rank_died", "give_up"),
    (local(failure=KILLED, vain=2), "crashed", "rank_died", "restart"),
    (local(failure=KILLED, same_step=2, last_step=9), "crashed", "rank_died", "give_up"),
    (local(**STOPPED, progressed=False, vain=2), "stopped", "user_stop", "give_up"),
    (slurm(intent="done", intent_step=9), "done", "done", "done"),
    (slurm(failure=KILLED), "crashed", "rank_died", "restart"),
    (slurm(failure=HUNG), "crashed", "rank_hung", "restart"),
    (slurm(replace(JOB, lost_nodes=("n2",)), failure=KILLED), "crashed", "node_lost", "requeue"),
    (slurm(replace(JOB, lost_nodes=("n1",)), failure=KILLED), "crashed", "rank_died", "restart"),
    (slurm(failure=LOST), "crashed", "node_lost", "requeue"),
    (slurm(failure=ABSENT), "crashed", "never_started", "restart"),
    (slurm(failure=replace(ABSENT, node="n2")), "crashed", "never_started", "requeue"),
    (
        slurm(replace(JOB, never_started_before=True), failure=ABSENT),
        "crashed", "never_started", "requeue",
    ),
    (slurm(intent="profiled", intent_step=7), "stopped", "user_stop", "stop"),
    (slurm(intent="profiled", failure=KILLED), "crashed", "rank_died", "restart"),
    (slurm(**STOPPED), "stopped", "stop_signal", "requeue"),
    (slurm(replace(JOB, seconds_left=200.0), **STOPPED), "stopped", "time_limit", "requeue"),
    (slurm(replace(JOB, seconds_left=None), **STOPPED), "stopped", "stop_signal", "requeue"),
    (slurm(replace(JOB, preempted=True), **STOPPED), "stopped", "preemption", "requeue"),
    (slurm(**STOPPED, asked=True), "stopped", "user_stop", "stop"),
    (slurm(TAKEN, **STOPPED), "stopped", "cancelled", "stop"),
    (slurm(TAKEN, **STOPPED, asked=True), "stopped", "cancelled", "stop"),
    (slurm(replace(TAKEN, coming_back=True), **STOPPED), "stopped", "requeued", "stop"),
    (
        slurm(replace(TAKEN, coming_back=True, said="PREEMPTION"), **STOPPED),
        "stopped", "preemption", "stop",
    ),
    (
        slurm(replace(TAKEN, coming_back=True, said="NODE FAILURE"), failure=KILLED),
        "crashed", "node_lost", "stop",
    ),
    (slurm(replace(TAKEN, said="TIME LIMIT"), failure=KILLED), "crashed", "time_limit", "stop"),
    (slurm(TAKEN, failure=KILLED, progressed=False, vain=9), "crashed", "cancelled", "stop"),
    (slurm(replace(JOB, requeue="never"), **STOPPED), "stopped", "stop_signal", "stop"),
    (slurm(replace(JOB, requeue="resubmit"), **STOPPED), "stopped", "stop_signal", "resubmit"),
    (slurm(replace(JOB, bad_nodes=("n2",)), failure=BAD), "crashed", "bad_node", "requeue"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "outcome", "cause", "follows"), TABLE)
def test_the_cause_and_what_follows(facts: Facts, outcome: str, cause: str, follows: str) -> None:
    decision = decide(facts)
    assert (decision.outcome, decision.cause, decision.next) == (outcome, cause, follows)
    assert decision.reason


def test_an_unfit_node_is_excluded_even_when_attempts_were_in_vain() -> None:
    facts = slurm(replace(JOB, bad_nodes=("n2",)), failure=BAD, progressed=False, vain=5)
    decision = decide(facts)
    assert (decision.next, decision.exclude) == ("requeue", ("n2",))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (replace(JOB, bad_nodes=("n2", "n3")), "n2, n3 cannot be excluded: more than half"),
        (replace(JOB, bad_nodes=("n2",), excludable=0), "n2 cannot be excluded"),
        (replace(JOB, bad_nodes=("n2",), excluded=("n2",)), "excluded already"),
    ],
)
def test_what_cannot_be_excluded_ends_the_run(job: JobFacts, message: str) -> None:
    decision = decide(slurm(job, failure=BAD))
    assert (decision.next, decision.exclude) == ("give_up", ())
    assert message in decision.reason


def test_the_second_crash_in_a_row_on_a_node_excludes_it() -> None:
    again = replace(JOB, culprit_before="n2")
    decision = decide(slurm(again, failure=KILLED))
    assert (decision.next, decision.exclude) == ("requeue", ("n2",))
    assert "second crash in a row on n2" in decision.reason
    for innocent in (
        slurm(again, failure=KILLED, same_step=1),  # what fails there is not the node
        slurm(replace(again, culprit_before="n1"), failure=KILLED),
        slurm(replace(again, excludable=0), failure=KILLED),  # better than no run at all
    ):
        assert decide(innocent).next == "restart"
        assert decide(innocent).exclude == ()


def test_a_loop_says_which() -> None:
    vain = decide(local(failure=KILLED, progressed=False, vain=2))
    assert vain.reason.endswith("; 3 attempts without a newer checkpoint")
    same = decide(local(failure=KILLED, same_step=2, last_step=1000))
    assert same.reason.endswith("; 3 attempts in a row ended at step 1000")


def test_without_an_answer_from_slurm_nothing_is_put_back() -> None:
    """It could bring a cancelled job to life."""
    unknown = JobFacts(state="no controller answers")
    assert decide(slurm(unknown, failure=KILLED)).next == "stop"
    assert decide(slurm(unknown, **STOPPED)).next == "stop"
