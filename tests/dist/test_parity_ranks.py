"""One table: every pair of the engine's settings on gloo ranks, beside a plain loop."""

import shutil
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import pytest
from ranks import run_ranks

FACTORS: dict[str, tuple[Any, ...]] = {
    "stage": (1, 2, 3),
    "offload": ("none", "optimizer", "optimizer_and_parameters"),
    "precision": ("fp32", "bf16", "fp16"),
    "accumulation": (1, 2),
    "clip": (0.0, 0.5),
    "recompute": ("none", "selective_attention", "selective_mlp", "full", "full_offload"),
    "average": (False, True),
    "layer_decay": (1.0, 0.7),
    "kind": ("adamw", "lamb"),
}
TOLERANCES = {
    # fp32: sums over ranks in another order, a few units in the last place of values near 2.
    "fp32": {"loss": 2e-6, "norm": 2e-6, "weights": 2e-6, "averages": 2e-6},
    # Where a 16-bit rounding forks, it is one unit in 2^8 (bf16) or 2^11 (fp16) of an activation.
    "bf16": {"loss": 1e-3, "norm": 5e-3, "weights": 4e-4, "averages": 4e-4},
    "fp16": {"loss": 2e-4, "norm": 1e-3, "weights": 1e-4, "averages": 1e-4},
}


def valid(row: dict[str, Any]) -> bool:
    return row["offload"] != "optimizer_and_parameters" or row["stage"] == 3


def covering(strength: int) -> list[dict[str, Any]]:
    """Rows in which every valid combination of ``strength`` settings occurs, chosen greedily."""
    rows = [dict(zip(FACTORS, values, strict=True)) for values in product(*FACTORS.values())]
    rows = [row for row in rows if valid(row)]
    groups = {index: set(parts(row, strength)) for index, row in enumerate(rows)}
    missing, chosen = set().union(*groups.values()), []
    while missing:
        best = max(groups, key=lambda index: len(groups[index] & missing))
        chosen.append(rows[best])
        missing -= groups.pop(best)
    return chosen


def parts(row: dict[str, Any], strength: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    return combinations(row.items(), strength)


RESUMED = [
    {"stage": 1, "kind": "lamb", "average": True},
    {"stage": 3, "kind": "lamb", "offload": "optimizer_and_parameters", "layer_decay": 0.7},
    {"stage": 2, "offload": "optimizer", "precision": "bf16", "accumulation": 2},
    {"stage": 1, "precision": "fp16", "clip": 0.5},
]


def check(found: dict[str, Any]) -> None:
    for name, tolerance in TOLERANCES[found["case"]["precision"]].items():
        assert found[name] < tolerance, f"{name}: {found[name]:.1e} in {found}"
    assert found["moved"] > 1e-3  # else nothing above says anything


@pytest.fixture(scope="module")
def suite() -> dict[str, Any]:
    return run_ranks("cases_parity:suite", 2, covering(2), RESUMED, [1, 3], timeout_seconds=300)[0]


@pytest.mark.slow
def test_every_pair_of_settings_equals_a_plain_loop(suite):
    assert len(suite["table"]) >= 15
    for found in suite["table"]:
        check(found)


def test_the_table_holds_every_pair():
    rows = covering(2)
    held = {part for row in rows for part in parts(row, 2)}
    for first, second in combinations(FACTORS, 2):
        for pair in product(FACTORS[first], FACTORS[second]):
            part = tuple(zip((first, second), pair, strict=True))
            assert (part in held) == valid({"stage": 3, "offload": "none", **dict(part)}), part


@pytest.mark.slow
def test_equal_runs_are_equal_to_the_bit_also_when_taken_up(suite):
    assert len(suite["resumed"]) == 4
    for found in suite["resumed"]:
        assert found["repeated"]
        assert found["resumed"]
        assert found["changed"]


@pytest.mark.slow
def test_the_loss_scale_is_saved(suite):
    state = suite["resumed"][3]["state"]
    # 1024, doubled after two finite steps and again after four; the resumed run counts on.
    assert (state["loss_scale"], state["loss_scale_good_steps"]) == (4096.0, 0)
    assert "loss_scale" not in suite["resumed"][0]["state"]


@pytest.mark.slow
def test_fp16_finds_its_scale_and_changes_nothing_before(suite):
    for found in suite["overflow"]:
        scales = found["scales"]
        assert len(scales) > 2
        assert scales == [2.0 ** (19 - index) for index in range(len(scales) - 1)] + [scales[-2]]
        assert found["untouched"] == [True] * (len(scales) - 1) + [False]
        assert found["unrounded"]
        assert found["norm"] < 1e-3
        assert max(found["distance"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_triple_of_settings_equals_a_plain_loop(size):
    rows = [row for index, row in enumerate(covering(3)) if index % 3 == (1, 2, 4).index(size)]
    rows += [row for row in covering(2) if row["kind"] == "lamb"]
    found = run_ranks("cases_parity:suite", size, rows, [], [], timeout_seconds=900)[0]
    for row in found["table"]:
        check(row)


@pytest.mark.slow
def test_compiled_blocks_equal_a_plain_loop():
    rows = [
        {"stage": 1, "compiled": True},
        {"stage": 2, "compiled": True, "recompute": "full", "accumulation": 2},
        {"stage": 1, "compiled": True, "recompute": "selective_mlp", "precision": "bf16"},
        {"stage": 2, "compiled": True, "recompute": "selective_attention", "precision": "bf16"},
    ]
    for found in run_ranks("cases_parity:table", 2, rows, timeout_seconds=600)[0]:
        check(found)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="DeepSpeed compiles its CPU Adam: no c++")
def test_deepspeeds_cpu_adam_equals_a_plain_loop():
    rows = [
        {"stage": stage, "offload": "optimizer", "implementation": "deepspeed_cpu", **more}
        for stage, more in (
            (1, {"accumulation": 2, "clip": 0.5}),
            (2, {"average": True}),
            (3, {"layer_decay": 0.7}),
        )
    ]
    resumed = [rows[0], rows[2]]
    found = run_ranks("cases_parity:suite", 2, rows, resumed, [], timeout_seconds=900)[0]
    for row in found["table"]:
        check(row)
    for one in found["resumed"]:
        assert one["repeated"]
        # Its powers of the betas are products of all steps since its start, else exponentials.
        assert one["apart"] < 1e-6
