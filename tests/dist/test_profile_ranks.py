"""Profiles of real steps: two ranks, each ZeRO stage, with and without computing again."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from cases_profile import ACCUMULATION, MICRO_BATCH, STEPS, forward_flops
from ranks import run_ranks

pytestmark = pytest.mark.slow

AGAIN = {"none": (0, 0), "full": (0.8, 1.0), "selective_mlp": (0.3, 0.7)}
"""Operations that are computed again, as fractions of the forward pass's, at least and at most:
whole blocks but for what comes after the last value that is needed; or products of MLPs."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1, "none"), id="ZeRO 1"),
        pytest.param((2, "full"), id="ZeRO 2, whole blocks again"),
        pytest.param((3, "selective_mlp"), id="ZeRO 3, MLPs again"),
    ],
)
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    """What each rank saw, and how it was to train."""
    stage, recompute = request.param
    folder = str(tmp_path_factory.mktemp("run"))
    found = run_ranks("cases_profile:with_and_without", 2, folder, stage, recompute)
    return [{**rank, "zero_stage": stage, "recompute": recompute} for rank in found]


def test_training_is_the_same_to_the_bit(ranks):
    assert all(rank["equal"] for rank in ranks)
    assert len(set(ranks[0]["losses"])) > 3


def test_the_ranks_that_are_named_leave_files(ranks):
    told, of_others = ranks[0]["told"], ranks[1]["told"]
    assert [event["event"] for event in told] == ["profiled"]
    assert "attempt_001_steps_3-4_rank_000" in told[0]["trace"]
    assert of_others == []
    assert ranks[0]["steps"] == STEPS


def test_every_moment_has_its_part_and_nearly_all_its_place(ranks):
    found = ranks[0]
    assert found["covered"] == pytest.approx(1.0, abs=0.001)
    assert found["unknown"] < 0.05
    assert all(share > 0.005 for share in found["shares"])
    assert found["collectives"] > 0


def test_operations_are_those_of_the_plan(ranks):
    flops = ranks[0]["flops"]
    assert flops["forward"] == pytest.approx(forward_flops(), rel=0.02)
    # Images have no gradient, so the first product has half of the rest's in the backward pass.
    assert flops["backward"] == pytest.approx(2 * forward_flops(), rel=0.03)
    low, high = AGAIN[ranks[0]["recompute"]]
    assert low * forward_flops() <= flops["again"] <= high * forward_flops()


def test_what_is_computed_again_is_told_apart(ranks):
    recomputes = ranks[0]["recompute"] != "none"
    assert (ranks[0]["again"] > 0.02) is recomputes
    assert ("forward pass again, in the backward" in ranks[0]["page"]) is recomputes


def test_a_deeper_stage_takes_more(ranks):
    """Stage 3 has three blocks, each with as many multiply-adds as stage 2's one."""
    assert ranks[0]["stage 3"] > 1.3 * ranks[0]["stage 2"]


def test_what_a_stage_keeps_is_what_is_not_computed_again(ranks):
    if ranks[0]["recompute"] == "full":
        # Block by block the residual stream, [B, 2, 2, 64] fp32; the last one is no block's input.
        assert ranks[0]["kept"]["stage 3"] < 4 * MICRO_BATCH * 2 * 2 * 64 * 4
    else:
        assert ranks[0]["kept"]["stage 3"] > 8 * MICRO_BATCH * 2 * 2 * 64 * 4


def test_the_page_is_one_page(ranks):
    page = ranks[0]["page"].splitlines()
    assert page[0] == "Profile of small, attempt 1, steps 3 to 4, rank 0 of 2"
    assert len(page) <= 75
    assert max(len(line) for line in page) <= 100
    assert f"micro-batch {MICRO_BATCH} x {ACCUMULATION}" in ranks[0]["page"]
    assert f"ZeRO {ranks[0]['zero_stage']}" in ranks[0]["page"]


def test_the_trace_is_what_viewers_take(ranks):
    """Whole JSON; ranges of a thread lie in each other or apart, as Perfetto asks."""
    path = Path(ranks[0]["told"][0]["trace"])
    trace = json.loads(gzip.decompress(path.read_bytes()))
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
