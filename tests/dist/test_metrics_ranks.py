"""Means over several ranks are those of one."""

import pytest
import torch
from cases_metrics import CLASSES, accuracy
from ranks import run_ranks

from pretrain import dist
from pretrain.world import World


@pytest.fixture(scope="module")
def means():
    first, second = run_ranks("cases_metrics:means", 2)
    assert first == second, "every rank learns the same"
    return first


def test_accuracy_and_confusions_are_those_of_one_rank_to_the_bit(means):
    dist.initialize(World(), torch.device("cpu"), timeout_seconds=30)
    try:
        alone = accuracy(World())
    finally:
        dist.shutdown()
    assert alone["overall"]["images"] == 29
    assert len(alone["confusions"]) > 5
    labels = [mistake["label"] for mistake in alone["mistakes"]]
    assert labels == sorted(labels, reverse=True)
    assert len(labels) > CLASSES
    assert means["accuracy"] == alone


def test_the_meter_weighs_images_over_all_ranks_and_survives_a_resume(means):
    images = [[3 + rank + number for number in range(4)] for rank in range(2)]
    losses = sum(images[rank][number] * (number + 1) for rank in range(2) for number in range(4))
    expected = {
        "train/loss": pytest.approx(losses / sum(map(sum, images))),
        "train/accuracy_fraction": 1 - 2 * 8 / sum(map(sum, images)),
        "train/grad_norm": 3.5,
        "train/skipped_steps": 0,
        "data/bad_samples": 4,
        **{f"train/update_ratio_stage_{stage}": 0.25 for stage in range(1, 5)},
    }
    for stage, (first, second) in enumerate([(0, 4), (1, 3), (2, 2), (3, 1)], 1):
        rms = ((first**2 + second**2) / 2) ** 0.5
        expected[f"train/activation_rms_stage_{stage}"] = pytest.approx(rms)
        expected[f"train/activation_max_stage_{stage}"] = max(first, second)
    assert means["whole"]["values"] == expected
    assert means["whole"]["losses"] == pytest.approx([1, 2, 3, 4])
    assert means["resumed"] == means["whole"]
    assert means["peak_gib"] > 0.01
