"""Global batches that are left out: which one a step trains on. No torch, no numpy."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Skip:
    """Neighbouring global batches of the stream that are left out.

    Attributes:
        first_batch: number of the first, from 0.
        batches: how many.
    """

    first_batch: int
    batches: int


def batch_of_step(step: int, skips: Sequence[Skip]) -> int:
    """Return the number of the global batch that a step trains on.

    Steps before a skip are what they were without it: a list that has grown fits every earlier
    state of the run.

    Args:
        step: 0-based.
        skips: in the order of the stream, apart from each other or touching.

    Example:
        >>> [batch_of_step(step, [Skip(2, 3)]) for step in range(4)]
        [0, 1, 5, 6]
    """
    batch = step
    for skip in skips:
        if batch < skip.first_batch:
            break
        batch += skip.batches
    return batch


def with_skip(skips: Sequence[Skip], first_step: int, end_step: int) -> list[Skip]:
    """Return the skips and one more: the batches of steps ``first_step`` to ``end_step - 1``.

    What lies between two of them is left out already.

    Example:
        >>> with_skip([Skip(2, 3)], 1, 3)
        [Skip(first_batch=1, batches=5)]
    """
    first = batch_of_step(first_step, skips)
    end = batch_of_step(end_step - 1, skips) + 1
    outside = [
        skip for skip in skips if skip.first_batch + skip.batches < first or skip.first_batch > end
    ]
    inside = [skip for skip in skips if skip not in outside]
    first = min([first, *(skip.first_batch for skip in inside)])
    end = max([end, *(skip.first_batch + skip.batches for skip in inside)])
    return sorted([*outside, Skip(first, end - first)], key=lambda skip: skip.first_batch)
