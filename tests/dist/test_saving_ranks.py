"""Saves beside training over real ranks: the same bits, failures told, one owner."""

from typing import Any

import pytest
from cases_checkpoint import LAST
from ranks import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks("cases_saving:everything", 2, str(tmp_path_factory.mktemp("saving")))


def test_saving_beside_training_changes_no_bit_and_every_checkpoint_resumes(ranks):
    _check([rank["beside"] for rank in ranks])


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_so_it_is_in_the_other_stages(tmp_path, stage):
    _check(run_ranks("cases_saving:beside", 2, str(tmp_path), stage))


def _check(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["same"]
        assert found["resumed"] == [True] * LAST
        assert found["told"] == list(range(1, LAST + 1))
        assert found["errors"] == []
        assert found["overlapped"] == LAST - 1  # it did go on before they were written
        assert found["waited"] > 0
        assert found["written"] > 0.1  # two syncs of rank zero's slow disk at least


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("full", "No space left on device"),
        ("quota", "Disk quota exceeded"),
        ("read_only", "Read-only file system"),
        ("stale", "Stale file handle"),
        ("broken", "Input/output error"),
    ],
)
def test_a_failing_disk_in_the_background_is_told_and_nothing_is_lost(ranks, fault, said):
    for rank in ranks:
        kind, message, left = rank["failing"][fault]
        assert kind == "StorageError"
        assert message.startswith("checkpoint, rank 1: ")
        assert "rank_00001.safetensors: cannot be written" in message
        assert said in message
        assert "MiB are free there; 1 older checkpoint is untouched" in message
        assert "\n" not in message
        assert left == ["step_00000001"]


def test_a_mended_disk_is_used_again(ranks):
    for rank in ranks:
        assert rank["failing"]["after"] == [["step_00000003", "step_00000004"], [3, 4]]


def test_a_defect_in_the_background_ends_training(ranks):
    assert [rank["defect"] for rank in ranks] == ["a defect"] * 2


def test_a_stale_attempt_writes_nothing(ranks):
    for rank in ranks:
        found = rank["fenced"]
        for kind, message in found["messages"]:
            assert kind == "OwnershipError"
            assert "attempt 2 (process" in message
            assert "has taken this run over from this one, attempt 1" in message
        assert found["left"] == ["step_00000001"]
        assert found["after"] == ["step_00000004"]
        assert (found["attempt"], found["refusals"]) == (3, [])
