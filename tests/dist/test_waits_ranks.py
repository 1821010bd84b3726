"""A training step does not wait for the device, on two gloo ranks and the whole loop of a run."""

from typing import Any

import pytest
import torch
from ranks import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, small_shards) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("waits")
    return run_ranks("cases_waits:suite", 2, str(folder), str(small_shards.path))


@pytest.mark.parametrize("settings", ["masked", "classes"])
def test_no_step_waits(ranks, settings):
    for rank in ranks:
        assert rank[settings]["found"] == []


def test_records_wait_and_are_seen_to(ranks):
    for rank in ranks:
        assert any("meter.py" in line for line in rank["classes"]["allowed"])


def test_a_loss_that_is_printed_is_seen(ranks):
    for rank in ranks:
        (line,) = [line for line in rank["asking"]["found"] if "cases_waits.py" in line]
        assert line.startswith("_local_scalar_dense: ")


def test_the_host_that_deepspeed_asks_is_seen(ranks):
    for rank in ranks:
        found = " ".join(rank["asking"]["found"])
        assert "mask_nan_or_inf_with_val_inplace" in found
        assert "is_invalid_grad_norm" in found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_waits_on_a_gpu(tmp_path, small_shards):
    assert run_ranks("cases_waits:on_gpu", 1, str(tmp_path / "gpu"), str(small_shards.path)) == [
        "done"
    ]
