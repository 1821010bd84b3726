"""What sampled steps say, beside a plain loop over whole parameters and whole batches."""

from typing import Any

import pytest
from ranks import run_ranks

ROWS: list[dict[str, Any]] = [
    {"stage": 1, "kind": "lamb", "average": True},
    {"stage": 2, "offload": "optimizer", "accumulation": 2, "clip": 0.5, "layer_decay": 0.7},
    {"stage": 3, "recompute": "full"},
]
MORE: list[dict[str, Any]] = [
    {"stage": 3, "kind": "lamb", "offload": "optimizer_and_parameters"},
    {"stage": 1, "recompute": "selective_mlp", "family": "swinv2_t"},
    {"stage": 3, "recompute": "full_offload", "family": "swin_mlp_t_c24"},
    {"stage": 2, "compiled": True},
]
ROUNDING = 3e-5
"""fp32: a change is a small difference of two weights."""
SAMPLING = 0.02
"""Of 2,048 elements of each parameter; its own error is about 1 in the root of their number."""


def check(found: dict[str, Any], ranks: int) -> None:
    for name, limit in (("whole", ROUNDING), ("sampled", SAMPLING)):
        for row in found[name]:
            assert row["off"].pop("update_ratio") < limit, row
            assert all(off < ROUNDING for off in row["off"].values()), row
            assert row["same"] == [True] * ranks, row
            assert row["seconds"] > 0
            # LAMB's own sum is not one of gradients or parameters.
            assert row["there"] - row["seen"] == (row["case"]["kind"] == "lamb"), row


@pytest.mark.slow
def test_sampled_steps_say_what_a_plain_loop_does():
    check(run_ranks("cases_samples:suite", 2, [ROWS[2]], [0])[0], ranks=2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_so_they_do_in_every_stage_on_one_rank_and_two(ranks):
    found = run_ranks("cases_samples:suite", ranks, ROWS, [0, 1, 2], timeout_seconds=300)
    check(found[0], ranks)


@pytest.mark.slow
def test_so_do_the_other_families_compiled_and_recomputed():
    check(run_ranks("cases_samples:suite", 2, MORE, [1], timeout_seconds=300)[0], ranks=2)
