"""The decay of the average; the average itself is in tests/dist/test_ema_ranks.py."""

import pytest
import torch

from pretrain.config.schema import EmaConfig
from pretrain.engine.ema import Ema, ema_decay

# 1 - n^(-2/3), computed apart in 40-digit arithmetic.
GOLDEN = {2: 0.3700394750525634, 3: 0.5192501432308639, 8: 0.75, 1000: 0.99, 10**6: 0.9999}


def test_warm_up_follows_the_published_formula():
    for step, expected in GOLDEN.items():
        assert ema_decay(step, 0.99999, warmup=True) == pytest.approx(expected, rel=1e-11)
    assert ema_decay(10**6, 0.999, warmup=True) == 0.999
    assert ema_decay(2, 0.999, warmup=False) == 0.999


@pytest.mark.parametrize("warmup", [True, False])
def test_the_first_update_takes_the_weights(warmup):
    flat = torch.zeros(3)
    average = Ema([flat], EmaConfig(decay=0.9, warmup=warmup))
    flat.copy_(torch.tensor([1.0, -2.0, 3.0]))
    average.update(1)
    assert torch.equal(average.of(flat), flat)


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
