"""An exponential moving average of the fp32 master weights, each rank of its own shards."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.config.schema import EmaConfig

KIND = "ema"
"""What the average is called in fragments."""


_CHUNK_ELEMENTS = 2**24
"""Elements that are averaged at once: 64 MiB of working space."""


def ema_decay(step: Tensor, decay: float, warmup: bool) -> Tensor:
    """Return what remains of the average in its update after the ``step``-th optimizer step.

    With warm-up min(decay, 1 - step^(-2/3)); the first update always takes the weights as they are
    (timm's ModelEmaV3 with ``use_warmup``, its other settings at their defaults).

    Args:
        step: optimizer steps that were applied, this one included, from 1; scalar on any device.
        decay: the greatest decay.
        warmup: rise to it, instead of starting with it.

    Returns:
        fp64 scalar on the device of ``step``, which is not waited for.
    """
    if warmup:
        return (1.0 - step.double().clamp(min=1).pow(-2 / 3)).clamp(max=decay)
    return (step > 1).double() * decay


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
    def update(self, step: Tensor, applied: Tensor) -> None:
        """Follow the weights after a step, to the bit not at all if it was not applied.

        Args:
            step: steps that were applied, scalar on the device of the weights, as is ``applied``.
            applied: bool scalar; neither is waited for.
        """
        weight = (1.0 - ema_decay(step, self._decay, self._warmup)).float()
        for average, flat in zip(self._averages, self._flats, strict=True):
            for old, new in zip(
                average.split(_CHUNK_ELEMENTS), flat.split(_CHUNK_ELEMENTS), strict=True
            ):
                # Not a weight of 0, which turns -0 into 0.
                torch.where(applied, old.lerp(new, weight), old, out=old)

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
