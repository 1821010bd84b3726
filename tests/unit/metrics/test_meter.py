"""Sums of steps: global means, skipped steps left out, intervals that survive a resume."""

import json
import math
from dataclasses import dataclass

import pytest
import torch

from pretrain import dist
from pretrain.metrics import meter as meter_module
from pretrain.metrics.meter import Meter, peak_memory_gib
from pretrain.world import World


@dataclass(frozen=True)
class Result:
    loss_sum: torch.Tensor
    images: int
    grad_norm: float | torch.Tensor = 1.0
    skipped: bool = False


def result(loss_sum, images, **rest):
    return Result(torch.tensor(loss_sum, dtype=torch.float32), images, **rest)


@pytest.fixture(autouse=True)
def alone():
    dist.initialize(World(), torch.device("cpu"), timeout_seconds=30)
    yield
    dist.shutdown()


def test_the_mean_weighs_images_not_steps():
    meter = Meter()
    meter.add(result(30.0, 10, grad_norm=2.0))
    meter.add(result(2.0, 30, grad_norm=torch.tensor(4.0)), bad_samples=3)
    values = meter.read().values
    assert values == {
        "train/loss": pytest.approx(32 / 40),
        "train/grad_norm": pytest.approx(3.0),
        "train/skipped_steps": 0,
        "data/bad_samples": 3,
    }


def test_a_skipped_step_is_counted_and_its_numbers_are_not():
    meter = Meter()
    meter.add(result(10.0, 10))
    meter.add(result(math.nan, 10, grad_norm=math.inf, skipped=True), bad_samples=1)
    values = meter.read().values
    assert values["train/loss"] == 1.0
    assert values["train/grad_norm"] == 1.0
    assert values["train/skipped_steps"] == 1
    assert values["data/bad_samples"] == 1


def test_an_interval_without_an_applied_step_has_no_loss():
    meter = Meter()
    meter.add(result(math.nan, 10, skipped=True))
    values = meter.read().values
    assert math.isnan(values["train/loss"])
    assert math.isnan(values["train/grad_norm"])
    assert values["train/skipped_steps"] == 1


def test_reading_starts_the_next_interval():
    meter = Meter()
    meter.add(result(10.0, 10))
    meter.read()
    meter.add(result(20.0, 10))
    assert meter.read().values["train/loss"] == 2.0


def test_many_small_losses_are_summed_in_double():
    meter = Meter()
    meter.add(result(2.0**25, 1))
    for _ in range(100):
        meter.add(result(1.0, 1))
    assert meter.read().values["train/loss"] == (2.0**25 + 100) / 101


def test_adding_neither_communicates_nor_copies_to_the_host(monkeypatch):
    meter = Meter()
    monkeypatch.setattr(meter_module.dist, "sum_across_ranks", None)
    monkeypatch.setattr(torch.Tensor, "item", None)
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    monkeypatch.setattr(torch.Tensor, "__float__", None)
    for _ in range(3):
        meter.add(result(1.0, 1, grad_norm=torch.tensor(2.0)))


def test_an_unfinished_interval_survives_a_resume():
    whole, first, second = Meter(), Meter(), Meter()
    steps = [
        result(7.0, 8, grad_norm=3.0),
        result(math.nan, 8, skipped=True),
        result(9.0, 8, grad_norm=torch.tensor(5.0)),
    ]
    for step in steps:
        whole.add(step, bad_samples=1)
    for step in steps[:2]:
        first.add(step, bad_samples=1)
    second.load_state(json.loads(json.dumps(first.state())), rank=0)
    second.add(steps[2], bad_samples=1)
    assert second.read() == whole.read()
    assert first.read().values["train/skipped_steps"] == 1, "state() must not end the interval"


def test_other_ranks_carry_no_sums_of_their_own():
    meter = Meter()
    meter.add(result(7.0, 8, grad_norm=3.0), bad_samples=2)
    other = Meter()
    other.load_state(meter.state(), rank=1)
    assert other.state() == {"steps": [[0.0, 0.0, 3.0, 0.0]], "bad_samples": 0}


def test_the_loss_of_every_step_is_there_in_order():
    meter = Meter()
    meter.add(result(30.0, 10))
    meter.add(result(math.nan, 10, skipped=True))
    meter.add(result(2.0, 8))
    assert meter.read().losses == [3.0, None, 0.25]
    assert meter.read().losses == []


def test_peak_memory_is_that_of_this_process():
    before = peak_memory_gib(torch.device("cpu"))
    assert 0.01 < before < 1024
    ballast = torch.ones(2**26)  # 256 MiB
    assert peak_memory_gib(torch.device("cpu")) >= before
    del ballast
