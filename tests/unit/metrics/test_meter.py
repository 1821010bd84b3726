"""Sums of steps: global means, skipped steps left out, intervals that survive a resume."""

import json
import math
from dataclasses import dataclass

import pytest
import torch

from pretrain import dist
from pretrain.metrics import meter as meter_module
from pretrain.metrics.activations import Activations
from pretrain.metrics.meter import Meter, peak_memory_gib
from pretrain.metrics.names import of_stages
from pretrain.world import World


@dataclass(frozen=True)
class Sample:
    update_squares: torch.Tensor


@dataclass(frozen=True)
class Result:
    loss_sum: torch.Tensor
    images: int
    grad_norm: float | torch.Tensor = 1.0
    skipped: bool = False
    hits: torch.Tensor | None = None
    sample: Sample | None = None

    @property
    def applied(self) -> torch.Tensor:
        return torch.tensor(not self.skipped)


def result(loss_sum, images, hits=None, **rest):
    counted = None if hits is None else torch.tensor(hits, dtype=torch.float32)
    return Result(torch.tensor(loss_sum, dtype=torch.float32), images, hits=counted, **rest)


def sampled(**rest):
    squares = torch.tensor([[4.0, 0.0, 1.0, 1.0], [16.0, 4.0, 100.0, 0.0]], dtype=torch.float64)
    return result(10.0, 10, sample=Sample(squares), **rest)


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


def test_accuracy_is_of_the_images_of_the_steps_applied():
    meter = Meter()
    meter.add(result(30.0, 10, hits=10))
    meter.add(result(2.0, 30, hits=0))
    meter.add(result(math.nan, 30, hits=30, skipped=True))
    assert meter.read().values["train/accuracy_fraction"] == 0.25


def test_updates_are_those_of_the_last_step_by_stage():
    meter = Meter()
    meter.add(result(10.0, 10))
    meter.add(sampled())
    values = meter.read().values
    assert [values[name] for name in of_stages("train/update_ratio")][:3] == [0.5, 0.0, 0.1]
    assert math.isnan(values["train/update_ratio_stage_4"])  # weights that are all zero
    meter.add(sampled())
    meter.add(result(10.0, 10))
    assert "train/update_ratio_stage_1" not in meter.read().values


def test_a_sampled_step_that_was_skipped_moved_nothing_anybody_knows():
    meter = Meter()
    meter.add(sampled(skipped=True))
    values = meter.read().values
    assert all(math.isnan(values[name]) for name in of_stages("train/update_ratio"))


def test_activations_are_those_that_were_looked_at():
    maps = [torch.full((2, 2), 2.0), torch.tensor([[-3.0, 1.0]]), torch.zeros(3), torch.ones(5)]
    stages = [torch.nn.Identity() for _ in maps]
    activations = Activations(stages)
    for sampled in (False, True):
        with activations.watched(sampled):
            for scale in (1.0, 100.0):  # two micro-batches: the first counts
                for stage, values in zip(stages, maps, strict=True):
                    stage(values * scale)
        if not sampled:
            assert activations.taken() is None
    meter = Meter()
    meter.add(result(10.0, 10))
    values = meter.read(activations.taken()).values
    rms = [values[name] for name in of_stages("train/activation_rms")]
    assert rms == pytest.approx([2.0, 5**0.5, 0.0, 1.0])
    assert [values[name] for name in of_stages("train/activation_max")] == [2.0, 3.0, 0.0, 1.0]
    assert activations.taken() is None
    assert not any(stage._forward_hooks for stage in stages)


def test_activations_that_are_no_numbers_are_not_passed_over():
    stages = [torch.nn.Identity() for _ in range(4)]
    activations = Activations(stages)
    with activations.watched(True):
        for stage in stages:
            stage(torch.tensor([1.0, math.nan]))
    values = Meter().read(activations.taken()).values
    assert not math.isfinite(values["train/activation_max_stage_1"])
    assert not math.isfinite(values["train/activation_rms_stage_1"])


def test_an_interval_without_an_applied_step_has_no_loss():
    meter = Meter()
    meter.add(result(math.nan, 10, hits=0, skipped=True))
    values = meter.read().values
    assert math.isnan(values["train/loss"])
    assert math.isnan(values["train/accuracy_fraction"])
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
        meter.add(sampled(grad_norm=torch.tensor(2.0), hits=1))
        meter.add(sampled(grad_norm=torch.tensor(2.0), skipped=True))


def test_an_unfinished_interval_survives_a_resume():
    whole, first, second = Meter(), Meter(), Meter()
    steps = [
        result(7.0, 8, hits=3, grad_norm=3.0),
        result(math.nan, 8, hits=8, skipped=True),
        result(9.0, 8, hits=4, grad_norm=torch.tensor(5.0)),
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
    meter.add(result(7.0, 8, hits=3, grad_norm=3.0), bad_samples=2)
    other = Meter()
    other.load_state(meter.state(), rank=1)
    assert other.state() == {"steps": [[0.0, 0.0, 3.0, 0.0, 0.0]], "bad_samples": 0}


def test_an_interval_saved_before_hits_were_counted_is_taken_up():
    meter = Meter()
    meter.load_state({"steps": [[7.0, 8.0, 3.0, 0.0]], "bad_samples": 2}, rank=0)
    without = meter.state()
    assert "train/accuracy_fraction" not in meter.read().values
    meter.load_state(json.loads(json.dumps(without)), rank=0)
    meter.add(result(9.0, 8, hits=4, grad_norm=5.0))
    values = meter.read().values
    assert values["train/loss"] == 1.0
    assert values["train/accuracy_fraction"] == 0.5


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
