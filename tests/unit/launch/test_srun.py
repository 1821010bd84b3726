"""Which rank failed, from what srun prints (messages of Slurm 22.05)."""

from launch.srun import read_failure


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
