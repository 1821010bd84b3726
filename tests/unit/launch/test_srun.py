"""Which rank failed, from what srun prints (messages of Slurm 22.05)."""

import pytest

from launch.supervise.srun import lost_nodes, read_failure


def test_the_killed_one_is_guilty_not_the_terminated() -> None:
    text = (
        "slurmstepd: error: *** STEP 5.0 ON 127.0.0.2 CANCELLED AT 2026-01-01T00:00:00 ***\n"
        "srun: error: 127.0.0.2: tasks 0-1: Terminated\n"
        "srun: error: 127.0.0.3: task 3: Killed\n"
        "srun: error: 127.0.0.3: task 2: Terminated\n"
    )
    failure = read_failure(text, 137)
    assert (failure.rank, failure.node, failure.cause) == (3, "127.0.0.3", "rank_died")
    assert failure.reason == "rank 3 on 127.0.0.3: killed"


def test_exit_code_two_is_bad_input_whatever_came_first() -> None:
    text = (
        "srun: error: n1: tasks 4,6: Exited with exit code 1\n"
        "srun: error: n2: task 9: Exited with exit code 2\n"
    )
    failure = read_failure(text, 2)
    assert (failure.rank, failure.cause) == (9, "bad_input")


def test_exit_code_twenty_is_not_bad_input() -> None:
    failure = read_failure("srun: error: n1: task 0: Exited with exit code 20\n", 20)
    assert failure.cause == "rank_died"


def test_a_core_dump_is_a_death() -> None:
    text = "srun: error: n1: task 1: Segmentation fault (core dumped)\n"
    assert read_failure(text, 139).reason == "rank 1 on n1: segmentation fault"


def test_without_a_culprit_the_last_words_count() -> None:
    failure = read_failure("srun: error: Unable to create step: Invalid\n", 1)
    assert failure.rank is None
    assert "Unable to create step" in failure.reason
    assert "no message" in read_failure("", 1).reason


def test_a_kill_outweighs_peers_that_noticed_it_first() -> None:
    text = (
        "srun: error: n1: tasks 0-3: Exited with exit code 1\n"
        "srun: error: n2: task 5: Killed\n"
        "srun: launch/slurm: _step_signal: Terminating StepId=7.0\n"
        "srun: error: n2: tasks 4,6-7: Terminated\n"
    )
    failure = read_failure(text, 137)
    assert (failure.rank, failure.node, failure.cause) == (5, "n2", "rank_died")


def test_those_killed_for_being_slow_to_leave_are_innocent() -> None:
    text = (
        "srun: error: n1: task 2: Exited with exit code 71\n"
        "srun: launch/slurm: _step_signal: Terminating StepId=7.0\n"
        "srun: error: n2: tasks 4-7: Killed\n"
    )
    failure = read_failure(text, 137)
    assert (failure.rank, failure.cause) == (2, "rank_hung")


@pytest.mark.parametrize(
    ("code", "cause"), [(72, "bad_node"), (73, "diverged_ranks"), (74, "storage"), (1, "rank_died")]
)
def test_exit_codes_tell_the_cause(code: int, cause: str) -> None:
    text = f"srun: error: n1: task 0: Exited with exit code {code}\n"
    assert read_failure(text, code).cause == cause


def test_a_node_that_fails_is_named() -> None:
    text = (
        "srun: error: Node failure on 127.0.0.3\n"
        "srun: Job step aborted: Waiting up to 7 seconds for job step to finish.\n"
        "srun: error: 127.0.0.2: tasks 0-1: Killed\n"
    )
    failure = read_failure(text, 137)
    assert (failure.rank, failure.node, failure.cause) == (None, "127.0.0.3", "node_lost")
    assert lost_nodes(text) == ["127.0.0.3"]
    assert lost_nodes("") == []


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("srun: error: Unable to create step for job 5: Requested nodes are busy\n", None),
        (
            "srun: error: Task launch for StepId=5.1 failed on node n3: Communication connection "
            "failure\nsrun: error: Application launch failed: Communication connection failure\n",
            "n3",
        ),
        (
            "srun: error: SLURM_JOB_NUM_NODES environment variable conflicts with allocated node "
            "count (2 != 1).\n",
            None,
        ),
    ],
)
def test_a_step_that_never_began(text: str, node: str | None) -> None:
    failure = read_failure(text, 1)
    assert (failure.rank, failure.cause, failure.node) == (None, "never_started", node)
    assert "launched no ranks" in failure.reason
