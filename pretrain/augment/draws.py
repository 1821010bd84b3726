"""Counter-based random draws: pure functions of a seed, a stream and an index.

No generator holds state, so a sample draws the same numbers in any batch, order, rank or attempt.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

_DOMAIN = 0x41554734  # keeps these draws apart from other users of the same seeds
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2**64 over the golden ratio; here and below as int64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64


class Stream(IntEnum):
    """What a draw is for; each has its own independent sequence."""

    FLIP = 1
    OPERATION = 2
    APPLY = 3
    LEVEL = 4
    SIGN = 5
    ERASE = 6
    ERASE_AREA = 7
    ERASE_ASPECT = 8
    ERASE_TOP = 9
    ERASE_LEFT = 10
    ERASE_NOISE = 11
    MASK = 12


def mix_bits(values: Tensor) -> Tensor:
    """Scramble 64-bit integers: the finaliser of splitmix64.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), with
    the constants of Vigna's public-domain splitmix64. A bijection.

    Args:
        values: int64, any shape, read as unsigned 64-bit integers.

    Returns:
        int64 of the same shape and device.
    """
    values = (values ^ _shift_right(values, 30)) * _MULTIPLIER_1
    values = (values ^ _shift_right(values, 27)) * _MULTIPLIER_2
    return values ^ _shift_right(values, 31)


def draw_bits(seeds: Tensor, stream: Stream, index: Tensor | int = 0) -> Tensor:
    """Draw 64 random bits for each seed.

    Args:
        seeds: int64 of any shape.
        stream: What the draw is for.
        index: Position in the stream's sequence, from 0; an int64 tensor broadcasts against
            ``seeds``.

    Returns:
        int64 of the broadcast shape, on the device of ``seeds``.
    """
    keys = mix_bits(mix_bits(seeds + _DOMAIN) + _wrap(stream * _GOLDEN))
    step = (index + 1) * _GOLDEN
    return mix_bits(keys + (step if isinstance(step, Tensor) else _wrap(step)))


def draw_uniform(seeds: Tensor, stream: Stream, index: Tensor | int = 0) -> Tensor:
    """Draw uniformly from [0, 1): float64, a multiple of 2**-53; see `draw_bits`."""
    return _shift_right(draw_bits(seeds, stream, index), 11).double().mul_(2.0**-53)


def draw_normal(
    seeds: Tensor, stream: Stream, index: Tensor | int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Draw from the standard normal distribution; see `draw_bits` for the arguments.

    One draw of 64 bits makes the two uniforms of the Box-Muller transform (Annals of Mathematical
    Statistics 29, 1958), so values reach 6.8 deviations in float64 and 5.9 in float32. Equal bits
    give equal values on one kind of device; logarithm and cosine may round differently on another.

    Args:
        seeds: int64 of any shape.
        stream: What the draw is for.
        index: Position in the stream's sequence.
        dtype: float64, or float32 for speed.

    Returns:
        ``dtype``, of the broadcast shape.
    """
    bits = draw_bits(seeds, stream, index)
    digits = 32 if dtype == torch.float64 else 24  # what the type holds exactly
    first = _shift_right(bits, 64 - digits).to(dtype)
    second = (bits & (2**digits - 1)).to(dtype)
    radius = (first + 0.5).mul_(2.0**-digits).log_().mul_(-2.0).sqrt_()
    return radius * second.mul_(2 * math.pi * 2.0**-digits).cos_()


def _wrap(value: int) -> int:
    """Read the lowest 64 bits of a whole number as an int64."""
    return (value + 2**63) % 2**64 - 2**63


def _shift_right(values: Tensor, count: int) -> Tensor:
    """Shift int64 to the right filling with zeros; torch's own shift copies the sign."""
    return (values >> count) & (2 ** (64 - count) - 1)
