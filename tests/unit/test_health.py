"""Which nodes are taken for unfit, and what a rank really finds."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain import dist, health
from pretrain.config.guard import HealthConfig
from pretrain.errors import NodeHealthError, StorageError
from pretrain.health import Report, check_health, unfit
from pretrain.run_directory import RunDirectory
from pretrain.world import World

SETTINGS = HealthConfig()
GOOD = Report(
    rank=0, node="n0", device="H100", memory_total_gib=80, memory_free_gib=79.0, driver="550.1",
    nccl="2.27.3", torch="2.9.0", deepspeed="0.19.8", python="3.12.1", disk_free_gib=500.0,
    tmp_free_gib=50.0, sum_is_right=True, product_is_right=True, product_seconds=(0.10, 0.11),
    copy_seconds=(0.01, 0.01), sum_seconds=0.001,
)  # fmt: skip


def eight(**of_rank_five: Any) -> list[Report]:
    reports = [replace(GOOD, rank=rank, node=f"n{rank // 2}") for rank in range(8)]
    reports[5] = replace(reports[5], **of_rank_five)
    return reports


def test_good_nodes_and_noisy_ones_pass() -> None:
    assert unfit(eight(), SETTINGS, cuda=True) == []
    once = eight(product_seconds=(9.0, 0.1), copy_seconds=(0.01, 9.0))
    assert unfit(once, SETTINGS, cuda=True) == []
    tiny = eight(copy_seconds=(0.04, 0.04))  # four times the median, of nothing
    assert unfit(tiny, SETTINGS, cuda=True) == []


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"sum_is_right": False}, "a sum over all ranks is wrong"),
        ({"product_is_right": False}, "a matrix product is wrong"),
        ({"device": "A100"}, "device is A100, elsewhere H100"),
        ({"driver": "535.2"}, "driver is 535.2, elsewhere 550.1"),
        ({"torch": "2.8.0"}, "torch is 2.8.0, elsewhere 2.9.0"),
        ({"memory_free_gib": 30.0}, "30.0 of 80 GiB of device memory free, expected 40.0"),
        ({"tmp_free_gib": 0.01}, "0.01 GiB free in"),
        ({"product_seconds": (0.5, 0.6)}, "matrix products took 0.6 s, elsewhere 0.11 s"),
        ({"copy_seconds": (0.5, 0.6)}, "copies took 0.6 s, elsewhere 0.01 s"),
    ],
)
def test_what_makes_a_node_unfit(fields: dict[str, Any], why: str) -> None:
    ((rank, node, said),) = unfit(eight(**fields), SETTINGS, cuda=True)
    assert (rank, node) == (5, "n2")
    assert why in said


def test_hosts_without_gpus_may_differ_in_memory() -> None:
    reports = eight(memory_total_gib=16, memory_free_gib=1.0)
    assert unfit(reports, SETTINGS, cuda=False) == []


@pytest.fixture
def job(tmp_path: Path) -> Any:
    config = SimpleNamespace(health=SETTINGS)
    run = RunDirectory(tmp_path)
    dist.initialize(World(), torch.device("cpu"), timeout_seconds=30)
    plan = SimpleNamespace(checkpoint_bytes=1)
    yield SimpleNamespace(run=run, config=config, plan=plan, world=World(), attempt=1)
    dist.shutdown()


def test_a_rank_looks_at_its_node_and_leaves_the_report(job: Any) -> None:
    found = check_health(job, torch.device("cpu"))
    assert found is not None
    assert found["nodes"] == 1
    (report,) = json.loads(job.run.ranks_path(1).read_text())["ranks"]
    assert report["torch"] == torch.__version__
    assert report["sum_is_right"] and report["product_is_right"]
    assert len(report["product_seconds"]) == 2
    assert not job.run.bad_ranks_path(1).exists()


def test_a_broken_device_is_named_before_the_first_step(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def matmul(_: Any, __: Any, *, out: torch.Tensor) -> None:
        out.fill_(384)
        out[3, 7] += 1

    monkeypatch.setattr(health.torch, "matmul", matmul)
    with pytest.raises(NodeHealthError, match=r"^rank 0 on .*: a matrix product is wrong$"):
        check_health(job, torch.device("cpu"))
    (named,) = json.loads(job.run.bad_ranks_path(1).read_text())["bad_ranks"]
    assert named["why"] == "a matrix product is wrong"


def test_a_wrong_sum_is_noticed(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(values: torch.Tensor, *_: Any, **__: Any) -> None:
        if values.dtype == torch.float32:
            values[-1] += 1

    monkeypatch.setattr(health.torch_dist, "all_reduce", all_reduce)
    assert health._sum(torch.device("cpu"), 0, 1)[0] is False


def test_a_full_disk_is_no_bad_node(job: Any) -> None:
    job.config.health = HealthConfig(min_free_disk_gib=10.0**9)
    with pytest.raises(StorageError, match="min_free_disk_gib"):
        check_health(job, torch.device("cpu"))
    job.config.health = HealthConfig()
    job.plan.checkpoint_bytes = 10**18  # what must fit where nothing else is said
    with pytest.raises(StorageError, match="one checkpoint"):
        check_health(job, torch.device("cpu"))
    assert not job.run.bad_ranks_path(1).exists()


def test_the_check_can_be_left_out(job: Any) -> None:
    job.config.health = HealthConfig(enabled=False)
    assert check_health(job, torch.device("cpu")) is None
    assert not job.run.ranks_path(1).exists()
