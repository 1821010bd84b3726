"""Means over several ranks are those of one."""

import pytest
from ranks import run_ranks


def test_accuracy_is_the_same_on_any_number_of_ranks():
    alone = run_ranks("cases_metrics:accuracy", 1)[0]
    both = run_ranks("cases_metrics:accuracy", 2)
    assert both[0] == both[1]
    assert alone[0] == both[0][0] == 29
    assert alone[1:3] == both[0][1:3]
    assert alone[3] == pytest.approx(both[0][3], rel=1e-12)


def test_the_meter_weighs_images_over_all_ranks_and_survives_a_resume():
    first, second = run_ranks("cases_metrics:meter", 2)
    assert first == second
    images = [[3 + rank + number for number in range(4)] for rank in range(2)]
    losses = sum(images[rank][number] * (number + 1) for rank in range(2) for number in range(4))
    expected = {
        "train/loss": pytest.approx(losses / sum(map(sum, images))),
        "train/grad_norm": 3.5,
        "train/skipped_steps": 0,
        "data/bad_samples": 4,
    }
    assert first["whole"] == expected
    assert first["resumed"] == expected
    assert first["peak_gib"] > 0.01
