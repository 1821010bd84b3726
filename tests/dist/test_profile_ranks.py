"""Profiles of real steps: two ranks, each ZeRO stage, with and without computing again."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from cases_profile import ACCUMULATION, MICRO_BATCH, STEPS, forward_flops
from ranks import run_ranks

WAYS = ("ZeRO 1", "ZeRO 2, whole blocks again", "ZeRO 3, MLPs again")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[list[dict[str, Any]]]:
    return run_ranks("cases_profile:suite", 2, str(tmp_path_factory.mktemp("run")))


@pytest.fixture(params=range(3), ids=WAYS)
def way(request) -> int:
    return request.param


def test_training_is_the_same_to_the_bit(ranks, way):
    assert all(rank[way]["equal"] for rank in ranks)
    assert len(set(ranks[0][way]["losses"])) > 3


def test_the_ranks_that_are_named_leave_files(ranks, way):
    told, of_others = ranks[0][way]["told"], ranks[1][way]["told"]
    assert [event["event"] for event in told] == ["profiled"]
    assert f"attempt_{way + 1:03d}_steps_3-4_rank_000" in told[0]["trace"]
    assert of_others == []
    assert ranks[0][way]["steps"] == STEPS


def test_every_moment_has_its_part_and_nearly_all_its_place(ranks, way):
    found = ranks[0][way]
    assert found["covered"] == pytest.approx(1.0, abs=0.001)
    assert found["unknown"] < 0.05
    assert all(share > 0.005 for share in found["shares"])
    assert found["collectives"] > 0


def test_operations_are_those_of_the_plan(ranks, way):
    flops = ranks[0][way]["flops"]
    assert flops["forward"] == pytest.approx(forward_flops(), rel=0.02)
    # Images have no gradient, so the first product has half of the rest's in the backward pass.
    assert flops["backward"] == pytest.approx(2 * forward_flops(), rel=0.03)
    # Whole blocks, but for what comes after the last value that is needed; or products of MLPs.
    low, high = ((0, 0), (0.8, 1.0), (0.3, 0.7))[way]
    assert low * forward_flops() <= flops["again"] <= high * forward_flops()


def test_what_is_computed_again_is_told_apart(ranks):
    assert ranks[0][0]["again"] == 0
    assert ranks[0][1]["again"] > 0.05
    assert "forward pass again, in the backward" in ranks[0][1]["page"]


def test_a_deeper_stage_takes_more(ranks):
    """Stage 3 has three blocks, each with as many multiply-adds as stage 2's one."""
    assert ranks[0][0]["stage 3"] > 1.3 * ranks[0][0]["stage 2"]


def test_whole_blocks_again_keep_less(ranks):
    kept = [sum(ranks[0][way]["kept"].values()) for way in range(2)]
    assert kept[1] < kept[0] / 3
    # What torch saves of stage 1's residual stream alone, fp32.
    assert ranks[0][0]["kept"]["stage 1"] > 2 * MICRO_BATCH * 8 * 8 * 16 * 4


def test_the_page_is_one_page(ranks, way):
    page = ranks[0][way]["page"].splitlines()
    assert page[0] == f"Profile of small, attempt {way + 1}, steps 3 to 4, rank 0 of 2"
    assert len(page) <= 75
    assert max(len(line) for line in page) <= 100
    assert f"micro-batch {MICRO_BATCH} x {ACCUMULATION}" in ranks[0][way]["page"]


def test_the_trace_is_what_viewers_take(ranks):
    """Whole JSON; ranges of a thread lie in each other or apart, as Perfetto asks."""
    trace = json.loads(gzip.decompress(Path(ranks[0][1]["told"][0]["trace"]).read_bytes()))
    ranges = [event for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    main = next(event["tid"] for event in ranges if event["name"] == "forward")
    open_until: list[float] = []
    for event in sorted(
        (event for event in ranges if event["tid"] == main),
        key=lambda event: (event["ts"], -event["dur"]),
    ):
        while open_until and open_until[-1] <= event["ts"]:
            open_until.pop()
        assert not open_until or event["ts"] + event["dur"] <= open_until[-1] + 0.01
        open_until.append(event["ts"] + event["dur"])
    names = {event["name"] for event in ranges}
    assert {"forward", "loss", "backward", "optimizer", "stage 3 / block 2 / mlp"} <= names
