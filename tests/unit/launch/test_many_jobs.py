"""One question about many jobs, and what is said to one of them."""

import subprocess

import pytest

from launch import scheduler
from launch.scheduler import JobState
from pretrain.errors import LaunchError


class Slurm:
    """Answers every command alike and remembers what was asked."""

    def __init__(self, code: int = 0, said: str = "", complained: str = "") -> None:
        self._answer = subprocess.CompletedProcess([], code, said, complained)
        self.asked: list[list[str]] = []

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(command)
        return self._answer


def slurm(monkeypatch: pytest.MonkeyPatch, *answer: int | str) -> Slurm:
    made = Slurm(*answer)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(scheduler, "_run", made.run)
    return made


def test_many_jobs_are_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "7|RUNNING|None|2026-01-02T03:04:05\n8_1|PENDING|Resources|N/A\ntorn"
    asked = slurm(monkeypatch, 0, said).asked
    assert scheduler.job_states(["7", "8_1", "9"]) == {
        "7": JobState("RUNNING", "None", "2026-01-02T03:04:05"),
        "8_1": JobState("PENDING", "Resources", "N/A"),
    }
    (command,) = asked
    assert command[-2:] == ["-j", "7,8_1,9"]
    assert scheduler.job_states([]) == {}
    assert len(asked) == 1


def test_a_forgotten_job_is_no_error_and_a_silent_slurm_is(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, 1, "", "slurm_load_jobs error: Invalid job id specified")
    assert scheduler.job_states(["7"]) == {}
    assert scheduler.job_state("7") is None
    slurm(monkeypatch, 1, "Job 7_2 not found\n", "")
    assert scheduler.job_state("7_2") is None
    slurm(monkeypatch, 1, "", "Unable to contact slurm controller")
    for ask in (lambda: scheduler.job_states(["7"]), lambda: scheduler.job_state("7")):
        with pytest.raises(LaunchError, match="Unable to contact"):
            ask()


def test_only_the_job_that_is_meant_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = slurm(monkeypatch).asked
    scheduler.cancel_pending("7")
    scheduler.cancel_pending("7_2")  # with the state Slurm would take its waiting neighbours too
    scheduler.cancel("7")
    scheduler.signal_batch("7", "TERM")
    assert asked == [
        ["scancel", "--state=PENDING", "7"],
        ["scancel", "7_2"],
        ["scancel", "7"],
        ["scancel", "--batch", "--signal=TERM", "7"],
    ]


@pytest.mark.parametrize(
    ("complaint", "refused"),
    [
        ("scancel: error: Kill job error on job id 7: Invalid job id specified", False),
        ("scancel: error: Kill job error: Job/step already completing or completed", False),
        ("", False),
        ("scancel: error: Kill job error on job id 7: Access/permission denied", True),
    ],
)
def test_a_job_that_is_over_needs_nothing(
    monkeypatch: pytest.MonkeyPatch, complaint: str, refused: bool
) -> None:
    slurm(monkeypatch, 1, "", complaint)
    if not refused:
        scheduler.cancel("7")
        return
    with pytest.raises(LaunchError, match="permission denied"):
        scheduler.cancel("7")
