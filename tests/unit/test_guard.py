"""Spikes and steps that are not finite: noticed when they matter, never in a clean run."""

import json
from itertools import pairwise

import numpy as np
import pytest

from pretrain.config.guard import GuardConfig
from pretrain.guard import Guard, odd_ranks

SETTINGS = GuardConfig(memory_steps=64, spike_steps=8, max_skipped_steps=5)


def clean_losses(steps, seed, noise=0.02, correlation=0.9):
    """A falling loss with heavy-tailed, correlated noise, as batches and epochs give."""
    random = np.random.default_rng(seed)
    shocks = noise * (1 - correlation) * random.standard_t(4, steps)
    drift = np.zeros(steps)
    for step in range(1, steps):
        drift[step] = correlation * drift[step - 1] + shocks[step]
    trend = 2.0 + 5.0 * np.exp(-np.arange(steps) / (steps / 6))
    return trend * (1 + drift + 0.5 * noise * random.standard_normal(steps))


def first_fault(guard, losses, interval=10):
    for start in range(0, len(losses), interval):
        part = list(losses[start : start + interval])
        fault = guard.watch(start + len(part), part)
        if fault is not None:
            return fault
    return None


@pytest.mark.parametrize(("noise", "correlation"), [(0.02, 0.9), (0.1, 0.0), (0.05, 0.99)])
def test_a_clean_run_never_goes_back(noise, correlation):
    losses = clean_losses(34_000, 1, noise, correlation)
    assert first_fault(Guard(GuardConfig()), losses) is None


def test_a_hundred_spikes_are_all_found_soon_after_they_begin():
    random = np.random.default_rng(7)
    for seed in range(100):
        losses = clean_losses(2000, seed)[1000:1400]
        begin = int(random.integers(80, 350))
        height, decay = random.uniform(0.5, 4.0), random.uniform(20, 500)
        losses[begin:] *= 1 + height * np.exp(-np.arange(400 - begin) / decay)
        fault = first_fault(Guard(SETTINGS), losses)
        assert fault is not None, seed
        assert begin - 1 <= fault.first_step <= begin + 2, seed
        assert fault.steps_done <= begin + 8 + 12, seed


def test_a_single_bad_batch_is_no_spike():
    losses = clean_losses(400, 3)
    losses[200] = 80.0
    losses[300:303] = 30.0
    assert first_fault(Guard(SETTINGS), losses) is None


def test_high_losses_do_not_become_the_measure():
    guard = Guard(SETTINGS)
    losses = clean_losses(100, 3)
    assert first_fault(guard, losses) is None
    for first, last in pairwise(range(100, 121, 7)):
        assert guard.watch(last, [9.0] * 6 + [losses[-1]]) is None, (first, last)
    assert guard.watch(129, [9.0] * 8) is not None


def test_steps_that_are_not_finite_count_only_in_a_row():
    guard = Guard(SETTINGS)
    assert guard.watch(4, [None] * 4) is None
    assert guard.watch(9, [1.0, None, None, None, None]) is None
    fault = guard.watch(12, [None, None, 1.0])
    assert fault is not None
    assert (fault.first_step, fault.steps_done) == (5, 12)
    assert "5 steps in a row" in fault.reason


def test_a_fault_is_forgotten_once_it_is_reported():
    guard = Guard(SETTINGS)
    assert guard.watch(5, [None] * 5) is not None
    assert guard.watch(9, [None] * 4) is None


def test_what_was_seen_survives_a_resume():
    losses = clean_losses(300, 5)
    losses[203:] *= 2
    whole, first = Guard(SETTINGS), Guard(SETTINGS)
    assert first_fault(first, losses[:206], 206) is None
    second = Guard(SETTINGS)
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.watch(300, list(losses[206:])) == whole.watch(300, list(losses))


def test_no_spikes_are_looked_for_without_a_limit():
    settings = GuardConfig(spike_deviations=None)
    assert first_fault(Guard(settings), [1.0] * 300 + [9.0] * 300) is None


def test_the_ranks_that_differ_from_most_are_named():
    assert odd_ranks([7]) == []
    assert odd_ranks([7] * 8) == []
    assert odd_ranks([7, 7, 7, 8]) == [3]
    assert odd_ranks([7, 8, 9, 8, 8]) == [0, 2]
    assert odd_ranks([7, 7, 8, 8]) == [0, 1, 2, 3]
