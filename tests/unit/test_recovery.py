"""Which checkpoint is gone back to, and what is left out since."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain import recovery
from pretrain.config.guard import GuardConfig
from pretrain.data.skips import Skip
from pretrain.errors import EngineError, RanksDivergedError
from pretrain.guard import Fault
from pretrain.run_directory import RunDirectory

FAULT = Fault(first_step=1000, steps_done=1010, reason="too bad")


def entry(checkpoint_step: int, fault_step: int, steps_done: int) -> dict[str, Any]:
    return {
        "checkpoint_step": checkpoint_step,
        "fault_step": fault_step,
        "steps_done": steps_done,
        "left_out_batches": [[checkpoint_step, 10]],
    }


@pytest.fixture
def job(tmp_path: Path) -> Any:
    return SimpleNamespace(
        run=RunDirectory(tmp_path),
        config=SimpleNamespace(guard=GuardConfig(memory_steps=100, max_rewinds=2), name="a"),
        world=SimpleNamespace(rank=0),
        attempt=1,
    )


def offered(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    def newest(_: Path, *, rank: int, newest_step: int) -> tuple[Any, list[str]]:
        found = [step for step in steps if step <= newest_step]
        return (SimpleNamespace(step=max(found)) if found else None), []

    monkeypatch.setattr(recovery, "newest_valid_for_all", newest)


def test_the_checkpoint_is_older_than_the_fault_by_the_margin_where_there_is_one(job, monkeypatch):
    offered(monkeypatch, [500, 900, 990, 1000])
    assert recovery._checkpoint_before(job, FAULT, []).step == 900
    offered(monkeypatch, [990, 1000])
    assert recovery._checkpoint_before(job, FAULT, []).step == 990
    offered(monkeypatch, [1000])
    with pytest.raises(EngineError, match="no checkpoint from before step 1001"):
        recovery._checkpoint_before(job, FAULT, [])


def test_a_checkpoint_that_led_to_the_fault_again_is_passed_over(job, monkeypatch):
    offered(monkeypatch, [500, 800, 900])
    assert recovery._checkpoint_before(job, FAULT, [900]).step == 800
    assert recovery._checkpoint_before(job, FAULT, [900, 800]).step == 500


def test_only_faults_that_follow_each_other_closely_are_one_trouble():
    rewinds = [entry(100, 150, 160), entry(700, 890, 905), entry(800, 960, 970)]
    assert recovery._in_vain(rewinds, FAULT, 100) == [800, 700]
    assert recovery._in_vain(rewinds, FAULT, 10) == []


def test_it_gives_up_after_so_many_rewinds_for_one_trouble(job):
    rewinds = [entry(900, 1000, 1010), entry(800, 1000, 1010)]
    job.run.rewinds_path.write_text(json.dumps({"rewinds": rewinds}))
    with pytest.raises(EngineError, match="too bad; it went back 2 times for this already"):
        recovery.go_back(job, SimpleNamespace(), FAULT)  # type: ignore[arg-type]


def test_what_is_left_out_is_read_back(job):
    assert recovery.read_skips(job.run) == []
    job.run.rewinds_path.write_text(json.dumps({"rewinds": [entry(5, 9, 12), entry(7, 9, 12)]}))
    assert recovery.read_skips(job.run) == [Skip(7, 10)]


@pytest.mark.parametrize("text", ["", "[]", '{"rewinds": [{}]}', '{"rewinds": [3]}'])
def test_a_damaged_list_of_rewinds_is_refused(job, text):
    job.run.rewinds_path.write_text(text)
    with pytest.raises(EngineError, match=r"rewinds\.json"):
        recovery.read_skips(job.run)


def test_the_rank_and_the_host_whose_weights_differ_are_named(job, monkeypatch):
    digests = [{"digest": digest, "host": f"node{rank}"} for rank, digest in enumerate([3, 3, 4])]
    monkeypatch.setattr(recovery.dist, "gather_objects", lambda _: digests)
    with pytest.raises(RanksDivergedError, match="weights of rank 2 on node2 are not those of"):
        recovery.compare_ranks(job, 3, 700)
    (named,) = json.loads(job.run.bad_ranks_path(job.attempt).read_text())["bad_ranks"]
    assert (named["rank"], named["node"]) == (2, "node2")
