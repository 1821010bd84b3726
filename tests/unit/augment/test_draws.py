"""Draws: known values of the hash, distributions, independence."""

import math

import pytest
import torch

from pretrain.augment.draws import Stream, draw_bits, draw_normal, draw_uniform, mix_bits

SEEDS = torch.arange(200_000) * 977


def test_mix_bits_is_splitmix64():
    # First outputs of the public-domain splitmix64.c for state 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + golden * step + 2**63) % 2**64 - 2**63 for step in (1, 2, 3)]
    assert [value % 2**64 for value in mix_bits(torch.tensor(states)).tolist()] == expected


def test_the_sequence_of_draws_is_frozen():
    """A resumed run must go on as before: these values may never change."""
    seeds = torch.tensor([0, 123456789])
    assert draw_bits(seeds, Stream.FLIP).tolist() == [2249994918153678603, -8751118042251682333]
    noise = draw_bits(seeds, Stream.ERASE_NOISE, 5)
    assert noise.tolist() == [-6822687647526123796, 422435763969250550]


def test_every_seed_bit_changes_half_of_the_output():
    seeds = torch.randint(0, 2**62, (500,), generator=torch.Generator().manual_seed(0))
    for bit in range(63):
        changed = draw_bits(seeds, Stream.FLIP) ^ draw_bits(seeds ^ (1 << bit), Stream.FLIP)
        share = sum((changed >> place) & 1 for place in range(64)).double().mean() / 64
        assert abs(share - 0.5) < 0.02


def test_uniform_is_uniform():
    values = draw_uniform(SEEDS, Stream.FLIP)
    assert values.dtype == torch.float64
    assert values.min() >= 0 and values.max() < 1
    counts = torch.histc(values, bins=100, min=0, max=1)
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert 50 < chi_squared < 160  # 99 degrees of freedom


def test_largest_uniform_is_below_one():
    assert torch.tensor(2**53 - 1).double().mul(2.0**-53) < 1  # what a draw of all ones becomes
    assert draw_uniform(SEEDS, Stream.SIGN).mul(15).long().max() == 14


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_normal_is_normal(dtype):
    values = draw_normal(SEEDS, Stream.LEVEL, dtype=dtype)
    assert values.dtype == dtype
    sorted_values = values.double().sort().values
    expected = 0.5 * (1 + torch.erf(sorted_values / math.sqrt(2)))
    found = (torch.arange(len(SEEDS)) + 0.5) / len(SEEDS)
    assert (expected - found).abs().max() < 1.95 / math.sqrt(len(SEEDS))  # Kolmogorov, p 0.001


def test_streams_indices_and_seeds_are_uncorrelated():
    draws = [draw_uniform(SEEDS, stream) for stream in Stream]
    draws += [draw_uniform(SEEDS, Stream.FLIP, index) for index in (1, 2, 3)]
    draws += [draw_uniform(SEEDS + 1, Stream.FLIP)]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / math.sqrt(len(SEEDS))


def test_draws_depend_on_seed_stream_and_index_only():
    order = torch.randperm(len(SEEDS), generator=torch.Generator().manual_seed(1))
    for draw in (draw_uniform, draw_normal):
        whole = draw(SEEDS, Stream.LEVEL, 1)
        assert torch.equal(draw(SEEDS[order], Stream.LEVEL, 1), whole[order])
        for size in range(1, 40):
            assert torch.equal(draw(SEEDS[100 : 100 + size], Stream.LEVEL, 1), whole[100:][:size])
    table = draw_uniform(SEEDS[:7, None], Stream.LEVEL, torch.arange(5))
    assert torch.equal(table[:, 3], draw_uniform(SEEDS[:7], Stream.LEVEL, 3))
