"""Averaged weights and layer-wise rates on two gloo ranks, against a plain loop in one process."""

from typing import Any

import pytest
from ranks import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, small_shards) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("averages"))
    two = run_ranks("cases_ema:suite", 2, folder, str(small_shards.path))
    return {"suite": two[0], "other": two[1], "one": run_ranks("cases_ema:reopen", 1, folder)[0]}


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_the_average_is_a_plain_loops_to_the_bit(ranks, stage):
    found = ranks["suite"][stage]
    assert found["exact"] == [True] * 7
    assert found["skipped"] == [False, False, True, False, False, False, False]


def test_skipping_on_the_device_is_to_the_bit_what_the_host_decides(ranks):
    """On two ranks, whose sums have one order."""
    assert ranks["suite"]["skipping"] == ranks["other"]["skipping"] == [True] * 4


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_layerwise_rates_and_average_equal_plain_torch(ranks, stage):
    found = ranks["suite"][stage]
    assert found["weights"] < 5e-6  # sums over ranks in another order
    assert found["averages"] < 5e-6
    assert found["apart"] > 5e-4  # else neither says anything


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_evaluating_the_average_uses_it_and_puts_the_weights_back(ranks, stage):
    for rank in ("suite", "other"):
        assert ranks[rank][stage]["back"]
    found = ranks["suite"][stage]
    assert found["logits"] < 5e-6
    assert found["raw_logits"] > 1e-3


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_a_run_measures_both_to_the_bit_as_each_alone(ranks, stage):
    found = ranks["suite"][stage]["evaluated"]
    assert found["both"] == ranks["other"][stage]["evaluated"]["both"]
    names = ("loss", "top1_fraction", "top5_fraction", "images")
    for which, prefix in (("raw", "eval/"), ("ema", "eval/ema_")):
        of_run = {f"eval/{name}": found["both"][f"{prefix}{name}"] for name in names}
        assert of_run == found[which]
    assert found["raw"]["eval/loss"] != found["ema"]["eval/loss"]


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_resuming_with_an_average_is_bitwise(ranks, stage):
    for rank in ("suite", "other"):
        assert ranks[rank][stage]["resumed"]


def test_another_world_and_stage_loads_the_average_to_the_bit(ranks):
    assert len(ranks["one"]) == 9
    assert all(ranks["one"].values())


def test_without_an_average_none_is_saved_or_given(ranks):
    assert ranks["suite"]["kinds"] == ["exp_avg", "exp_avg_sq", "master"]
    assert "give ema.decay=0.9999" in ranks["suite"]["without"]
