"""How far a step moves the weights, by stage, estimated from a sample of this rank's shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.engine.shards import Piece

SAMPLED_ELEMENTS = 2048
"""Elements looked at of a piece of a parameter; smaller pieces are looked at whole."""
SEED = 20260101


@dataclass(frozen=True)
class _Sampled:
    """What is looked at of one flat, its stages one after the other.

    Attributes:
        flat: fp32 master weights, which the optimizer changes in place.
        places: int64 [n], in the flat.
        counts: fp64 [n], elements that each one stands for.
        stage_sizes: how many of the n are of each stage.
    """

    flat: Tensor
    places: Tensor
    counts: Tensor
    stage_sizes: list[int]

    def look(self) -> Tensor:
        return self.flat.index_select(0, self.places)

    def squares(self, values: Tensor) -> Tensor:
        """Return the estimated sum of squares of each stage, fp64 [S]."""
        parts = (values.double().square_() * self.counts).split(self.stage_sizes)
        return torch.stack([part.sum() for part in parts])


class Updates:
    """Compares the master weights before and after a step, waiting for no rank and no device.

    The sample is the same in every step: of each piece one random element of every
    `SAMPLED_ELEMENTS` equal runs, which stands for its run. (Evenly spaced ones would hit the same
    few columns of a matrix.)

    Args:
        pieces: what this rank owns.
        stages: stage of each parameter by name, from 0; those without one are left out.
    """

    def __init__(self, pieces: Sequence[Piece], stages: Mapping[str, int]) -> None:
        self._stage_count = max(stages.values(), default=-1) + 1
        counted = [piece for piece in pieces if piece.name in stages]
        flats = {piece.flat.data_ptr(): piece.flat.detach() for piece in counted}
        self._sampled = [
            _sample(
                flat,
                [
                    [
                        piece
                        for piece in counted
                        if piece.flat.data_ptr() == address and stages[piece.name] == stage
                    ]
                    for stage in range(self._stage_count)
                ],
            )
            for address, flat in flats.items()
        ]
        self._before: list[Tensor] = []

    @torch.no_grad()
    def before(self) -> None:
        """Remember the weights that the next step starts from."""
        self._before = [sampled.look() for sampled in self._sampled]

    @torch.no_grad()
    def after(self) -> Tensor:
        """Return the sums of squares of what changed since `before`, and of what was there then.

        Returns:
            fp64 [2, S] where the masters are; this rank's part of S stages.
        """
        rows = [
            torch.stack([sampled.squares(sampled.look() - before), sampled.squares(before)])
            for sampled, before in zip(self._sampled, self._before, strict=True)
        ]
        self._before = []
        if not rows:
            return torch.zeros(2, self._stage_count, dtype=torch.float64)
        return torch.stack(rows).sum(dim=0)


def _sample(flat: Tensor, of_stages: list[list[Piece]]) -> _Sampled:
    generator = torch.Generator().manual_seed(SEED)
    places, counts, stage_sizes = [], [], []
    for pieces in of_stages:
        drawn = [_places(piece.count, generator) for piece in pieces]
        places += [piece.offset + own for piece, own in zip(pieces, drawn, strict=True)]
        counts += [
            torch.full((len(own),), piece.count / len(own), dtype=torch.float64)
            for piece, own in zip(pieces, drawn, strict=True)
        ]
        stage_sizes.append(sum(len(own) for own in drawn))
    return _Sampled(
        flat, torch.cat(places).to(flat.device), torch.cat(counts).to(flat.device), stage_sizes
    )


def _places(count: int, generator: torch.Generator) -> Tensor:
    """Return the elements of a piece to look at, int64 [n], in order."""
    if count <= SAMPLED_ELEMENTS:
        return torch.arange(count)
    runs = torch.arange(SAMPLED_ELEMENTS, dtype=torch.float64)
    draws = torch.rand(SAMPLED_ELEMENTS, dtype=torch.float64, generator=generator)
    return ((runs + draws) * (count / SAMPLED_ELEMENTS)).long().clamp_(max=count - 1)
