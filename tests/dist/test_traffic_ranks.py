"""The plan's bytes against what DeepSpeed's collectives carry in a real step of two ranks."""

from collections import Counter

import pytest
from ranks import run_ranks

from pretrain.config.engine import EngineConfig
from pretrain.plan.traffic import payloads_of

CASES = [
    *([stage, accumulation, "fp32", "fp32"] for stage in (1, 2, 3) for accumulation in (1, 4)),
    *([stage, 2, "bf16", dtype] for stage in (1, 2, 3) for dtype in ("fp32", "bf16")),
]


@pytest.fixture(scope="module")
def counted():
    return run_ranks("cases_traffic:suite", 2, CASES)[0]


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_the_plan_counts_what_is_sent(counted, index):
    stage, accumulation, precision, dtype = CASES[index]
    found = counted[index]
    engine = EngineConfig(zero_stage=stage, precision=precision, reduce_dtype=dtype)
    planned: Counter[str] = Counter()
    for payload in payloads_of(engine, found["parameters"], accumulation):
        planned[payload.kind] += payload.times * payload.size_bytes
    assert found["carried"].keys() == planned.keys()
    for kind, size_bytes in planned.items():
        # Padding of shards; and the small parameters, a tenth of this network, which stage 3
        # gathers once per step, and which are always fp32.
        assert found["carried"][kind] == pytest.approx(size_bytes, rel=0.11), kind


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_weights_stay_whole_from_the_forward_to_the_backward_pass(counted, index):
    """Which is why stage 3 gathers them once, and why the plan counts them as memory."""
    accumulation, found = CASES[index][1], counted[index]
    assert found["whole"] == accumulation * [found["parameters"]]
