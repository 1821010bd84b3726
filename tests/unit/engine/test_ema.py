"""The decay of the average; the average itself is in tests/dist/test_ema_ranks.py."""

import pytest
import torch

from pretrain.config.schema import EmaConfig
from pretrain.engine.ema import Ema, ema_decay

# 1 - n^(-2/3), computed apart in 40-digit arithmetic.
GOLDEN = {2: 0.3700394750525634, 3: 0.5192501432308639, 8: 0.75, 1000: 0.99, 10**6: 0.9999}


def test_warm_up_follows_the_published_formula():
    for step, expected in GOLDEN.items():
        found = ema_decay(torch.tensor(step), 0.99999, warmup=True)
        assert float(found) == pytest.approx(expected, rel=1e-11)
    assert float(ema_decay(torch.tensor(10**6), 0.999, warmup=True)) == 0.999
    assert float(ema_decay(torch.tensor(2), 0.999, warmup=False)) == 0.999


@pytest.mark.parametrize("warmup", [True, False])
def test_the_first_update_takes_the_weights(warmup):
    flat = torch.zeros(3)
    average = Ema([flat], EmaConfig(decay=0.9, warmup=warmup))
    flat.copy_(torch.tensor([1.0, -2.0, 3.0]))
    average.update(torch.tensor(1), torch.tensor(True))
    assert torch.equal(average.of(flat), flat)


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("step", [0, 1, 7])
def test_a_step_that_was_not_applied_changes_no_bit(warmup, step):
    """Zeros keep their sign, and nothing is computed with what is not finite."""
    flat = torch.tensor([-0.0, 0.0, 3.0e38, 1.0])
    average = Ema([flat], EmaConfig(decay=0.9, warmup=warmup))
    before = average.of(flat).clone()
    flat.copy_(torch.tensor([-0.0, -0.0, -3.0e38, torch.nan]))
    average.update(torch.tensor(step), torch.tensor(False))
    assert torch.equal(average.of(flat).view(torch.int32), before.view(torch.int32))


def test_swapping_twice_is_nothing():
    flats = [torch.randn(5), torch.randn(2)]
    average = Ema(flats, EmaConfig(decay=0.9))
    before = [flat.clone() for flat in flats]
    for flat in flats:
        flat += 1.0
    moved = [flat.clone() for flat in flats]
    average.swap()
    for flat, old, new in zip(flats, before, moved, strict=True):
        assert torch.equal(flat, old)
        assert torch.equal(average.of(flat), new)
    average.swap()
    for flat, old, new in zip(flats, before, moved, strict=True):
        assert torch.equal(flat, new)
        assert torch.equal(average.of(flat), old)


def test_an_average_needs_a_decay():
    with pytest.raises(ValueError, match=r"ema\.decay"):
        Ema([torch.zeros(1)], EmaConfig())
