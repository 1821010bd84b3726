import math

import pytest

from pretrain.engine.schedule import learning_rate

# Expected values were computed apart, in 40-digit arithmetic.
# The published 22K recipe: 90 epochs of 3,466 steps, 5 of them warm-up.
PRETRAINING = {
    "total_steps": 90 * 3466,
    "warmup_steps": 5 * 3466,
    "peak": 1e-3,
    "start": 1e-6,
    "floor": 1e-5,
}
# The published 22K to 1K fine-tuning: 30 epochs of 1,251 steps, 5 of them warm-up.
FINE_TUNING = {
    "total_steps": 30 * 1251,
    "warmup_steps": 5 * 1251,
    "peak": 4e-5,
    "start": 4e-8,
    "floor": 4e-7,
}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-6),
        (8_665, 5.005e-4),  # half of the warm-up
        (17_329, 9.999423542989036e-4),  # last step of the warm-up: one short of the peak
        (17_330, 1e-3),  # the cosine starts at the peak
        (90_982, 8.550197229013116e-4),  # a quarter of the cosine (rounded down to a step)
        (164_635, 5.05e-4),  # half of the cosine
        (311_939, 1.000000002814362e-5),  # the last step that is taken
        (311_940, 1e-5),
    ],
)
def test_pretraining_golden_values(step, expected):
    assert learning_rate(step, kind="cosine", **PRETRAINING) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 4e-8),
        (6_255, 4e-5),
        (6_255 + 15_637, 2.020099446098345e-5),
        (37_529, 4.000000998942068e-7),
    ],
)
def test_fine_tuning_golden_values(step, expected):
    assert learning_rate(step, kind="cosine", **FINE_TUNING) == pytest.approx(expected, rel=1e-12)


# SimMIM's: 800 epochs of 625 steps, 10 of them warm-up, a tenth of the rate from epoch 700 on.
MULTISTEP = {
    "total_steps": 800 * 625,
    "warmup_steps": 10 * 625,
    "peak": 4e-4,
    "start": 2e-6,
    "floor": 1.0,
    "milestones": (700 * 625,),
    "milestone_factor": 0.1,
}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 2e-6),
        (3_125, 2.01e-4),  # half of the warm-up
        (6_249, 3.9993632e-4),  # one short of the peak
        (6_250, 4e-4),
        (437_499, 4e-4),  # the last step of epoch 700
        (437_500, 4e-5),
        (499_999, 4e-5),
    ],
)
def test_multistep_golden_values(step, expected):
    assert learning_rate(step, kind="multistep", **MULTISTEP) == pytest.approx(expected, rel=1e-12)


def test_every_milestone_lowers_the_rate_once():
    numbers = {"total_steps": 8, "warmup_steps": 2, "peak": 1.0, "start": 0.0, "floor": 0.0}
    rates = [
        learning_rate(step, kind="multistep", milestones=(2, 4, 7), milestone_factor=0.5, **numbers)
        for step in range(9)
    ]
    assert rates == [0.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125]


def test_linear_and_constant():
    numbers = {"total_steps": 12, "warmup_steps": 2, "peak": 1.0, "start": 0.0, "floor": 0.5}
    linear = [learning_rate(step, kind="linear", **numbers) for step in range(13)]
    expected = [0.0, 0.5, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5]
    assert linear == pytest.approx(expected)
    constant = [learning_rate(step, kind="constant", **numbers) for step in range(13)]
    assert constant == [0.0, 0.5] + [1.0] * 11


def test_never_leaves_its_range_and_falls_after_the_warm_up():
    rates = [learning_rate(step, kind="cosine", **FINE_TUNING) for step in range(0, 37_530, 10)]
    assert min(rates) >= 4e-8
    assert max(rates) <= 4e-5
    after = [rate for step, rate in zip(range(0, 37_530, 10), rates, strict=True) if step >= 6_255]
    assert all(math.isfinite(rate) for rate in rates)
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize(("step", "warmup"), [(-1, 0), (0, 10), (0, -1)])
def test_refuses_impossible_numbers(step, warmup):
    with pytest.raises(ValueError, match="learning_rate"):
        learning_rate(
            step,
            total_steps=10,
            warmup_steps=warmup,
            peak=1.0,
            start=0.0,
            floor=0.0,
            kind="cosine",
        )


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-6),
        (17_329, 9.999423542989036e-4),
        (17_330, 9.92479837741043e-4),  # 5/90 of the way down already
        (155_970, 5.05e-4),  # half of the whole run, not of what follows the warm-up
        (311_940, 1e-5),
    ],
)
def test_a_decay_under_the_warm_up(step, expected):
    lr = learning_rate(step, kind="cosine", decay_spans_warmup=True, **PRETRAINING)
    assert lr == pytest.approx(expected, rel=1e-12)
