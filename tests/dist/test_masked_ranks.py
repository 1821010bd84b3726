"""Masked pre-training on two gloo ranks: what one process learns, and that it is learnt."""

from statistics import mean
from typing import Any

import pytest
from cases_masked import against_mean_colour
from ranks import run_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def suite() -> dict[str, Any]:
    return run_ranks("cases_masked:suite", 2, 3, 24)[0]


@pytest.mark.parametrize("stage", ["1", "3"])
def test_two_ranks_learn_what_one_process_does(suite, stage):
    assert suite[stage]["loss"] < 2e-6  # fp32 sums in another order
    assert suite[stage]["weights"] < 2e-5


def test_the_loss_falls_on_images_never_seen_before(suite):
    """Each step has new photographs."""
    losses = suite["long"]
    assert mean(losses[-8:]) < 0.9 * mean(losses[:4])


def test_restoring_learns_more_than_the_colour_of_what_is_shown():
    learnt, guessed = against_mean_colour(steps=300, last=25)
    assert learnt < 0.9 * guessed
