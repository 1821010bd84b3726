"""An exponential moving average of the fp32 master weights, each rank of its own shards."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.config.schema import EmaConfig

KIND = "ema"
"""What the average is called in fragments."""


def ema_decay(step: int, decay: float, warmup: bool) -> float:
    """Return what remains of the average in its update after the ``step``-th optimizer step.

    With warm-up min(decay, 1 - step^(-2/3)); the first update always takes the weights as they are
    (timm's ModelEmaV3 with ``use_warmup``, its other settings at their defaults).

    Args:
        step: optimizer steps that were applied, this one included, from 1.
        decay: the greatest decay.
        warmup: rise to it, instead of starting with it.
    """
    if step <= 1:
        return 0.0
    return min(decay, 1.0 - step ** (-2 / 3)) if warmup else decay


class Ema:
    """Averages of this rank's flat master weights. No rank waits for another.

    Args:
        flats: fp32 master weights of this rank, which the optimizer changes in place.
        settings: how slow the average is; ``decay`` is given.
    """

    def __init__(self, flats: Sequence[Tensor], settings: EmaConfig) -> None:
        if settings.decay is None:
            raise ValueError("ema.decay: expected a number, got null")
        self._decay = settings.decay
        self._warmup = settings.warmup
        self._flats = [flat.detach() for flat in flats]
        self._averages = [flat.clone() for flat in self._flats]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after the ``step``-th applied step; never after a skipped one."""
        weight = 1.0 - ema_decay(step, self._decay, self._warmup)
        for average, flat in zip(self._averages, self._flats, strict=True):
            average.lerp_(flat, weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and master weights, to the bit; a second call exchanges them back."""
        for average, flat in zip(self._averages, self._flats, strict=True):
            held = flat.clone()
            flat.copy_(average)
            average.copy_(held)

    def of(self, flat: Tensor) -> Tensor:
        """Return the average of one of the flats, as it lives here: writes reach it."""
        addresses = [own.data_ptr() for own in self._flats]
        return self._averages[addresses.index(flat.data_ptr())]
