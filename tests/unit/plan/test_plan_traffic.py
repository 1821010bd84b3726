"""Bytes that ranks send each other, by hand. What DeepSpeed does is counted in tests/dist."""

import pytest

from pretrain.config.engine import EngineConfig
from pretrain.config.load import load_run
from pretrain.plan.derive import make_plan
from pretrain.plan.render import render
from pretrain.plan.resources import Resources
from pretrain.plan.traffic import payloads_of

PARAMETERS = 1000


def sent(stage, ranks, accumulation=1, reduce_dtype="fp32"):
    engine = EngineConfig(zero_stage=stage, reduce_dtype=reduce_dtype)
    payloads = payloads_of(engine, PARAMETERS, accumulation)
    return sum(payload.sent_bytes(ranks) for payload in payloads)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_rank_sends_nothing(stage):
    assert sent(stage, 1, accumulation=4) == 0


@pytest.mark.parametrize(
    ("stage", "accumulation", "reduce_dtype", "bytes_per_parameter"),
    [
        (1, 1, "fp32", 2 * 4 + 4),
        (1, 8, "fp32", 2 * 4 + 4),
        (2, 1, "fp32", 2 * 4 + 4),
        (2, 8, "fp32", 8 * 2 * 4 + 4),
        (3, 1, "fp32", 4 + 4),
        (3, 8, "fp32", 8 * (4 + 4)),
        (1, 8, "bf16", 2 * 2 + 4),
        (3, 8, "bf16", 8 * (2 + 2)),
    ],
)
def test_bytes_of_each_stage_by_hand(stage, accumulation, reduce_dtype, bytes_per_parameter):
    half = sent(stage, 2, accumulation, reduce_dtype)
    assert half == bytes_per_parameter * PARAMETERS / 2
    many = sent(stage, 10**6, accumulation, reduce_dtype)
    assert many == pytest.approx(bytes_per_parameter * PARAMETERS, rel=1e-5)


def row(stage, nodes, ranks_per_node):
    config = load_run("swin_l_22k", [f"engine.zero_stage={stage}"], cluster="slurm")
    resources = Resources("cuda", nodes, ranks_per_node)
    text = render(config, make_plan(config, None, resources, free_disk_bytes=0))
    return [line for line in text.splitlines() if line.startswith("  communication")]


def test_the_plan_says_it():
    assert row(1, 1, 1) == []
    (first,) = row(1, 1, 8)
    whole_gib = 228_565_093 * 4 / 2**30
    assert f"{3 * whole_gib * 7 / 8:.3g} GiB sent by each rank per step" in first
    assert "all-reduce of gradients, 872 MiB; all-gather of weights, 872 MiB" in first
    assert "not beside the computing" in first
    (second,) = row(2, 1, 8)
    assert "all-reduce of gradients, 872 MiB x 8" in second
    (third,) = row(3, 1, 8)
    assert "reduce-scatter of gradients, 872 MiB x 8), beside the computing" in third
