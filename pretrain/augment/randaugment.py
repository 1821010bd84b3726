"""RandAugment: each image goes through a few operations drawn for it (arXiv 1909.13719).

Semantics are those of timm's ``rand-…-inc1``: which operations there are, how a level becomes their
argument, and when the sign is drawn. Pixels are those of Pillow.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pretrain.augment import colour
from pretrain.augment.draws import Stream, draw_normal, draw_uniform
from pretrain.augment.geometry import transform_affine
from pretrain.augment.policy import RandAugmentPolicy
from pretrain.augment.transfer import send

OPERATION_COUNT = 15
"""Length of `increasing_operations`."""

_TOP_LEVEL = 10.0
_MAX_DEGREES = 30.0
_MAX_SHEAR = 0.3
_MAX_TRANSLATION_FRACTION = 0.45
_MAX_ENHANCEMENT = 0.9


@dataclass(frozen=True)
class Operation:
    """One of the fifteen.

    Attributes:
        name: As timm calls it.
        arguments: Turns ``levels`` float64 [n] (0 to 10), ``signs`` float64 [n] (-1 or 1), height
            and width (pixels) into float64 [n, 1] or, for a matrix, [n, 6]. Runs on the host.
        apply: Turns images uint8 [n, 3, H, W] and those arguments into images.
    """

    name: str
    arguments: Callable[[Tensor, Tensor, int, int], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


class RandAugment:
    """Applies a policy to a batch; each sample's operations follow from its seed alone.

    Args:
        policy: How many operations, how strong, how often.
        fill: Value 0 to 255 of each channel for pixels that come from outside the image.
    """

    def __init__(self, policy: RandAugmentPolicy, fill: tuple[int, int, int]):
        self.policy = policy
        self.fill = torch.tensor(fill, dtype=torch.uint8)

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Augment a batch.

        All draws are made on the host, so that the samples of each operation are known there: the
        device works through their index lists, per operation and layer, without being waited for.

        Args:
            images: uint8 [B, 3, H, W], on any device; changed in place.
            seeds: int64 [B], on the host.

        Returns:
            ``images``.
        """
        height, width = images.shape[2:]
        drawn = [
            group
            for layer in range(self.policy.layers)
            for group in self._groups(seeds, layer, height, width)
        ]
        fill, *sent = send(
            [self.fill, *(part for _, *parts in drawn for part in parts)], images.device
        )
        operations = increasing_operations(fill)
        for (which, *_), samples, arguments in zip(drawn, sent[::2], sent[1::2], strict=True):
            result = operations[which].apply(images.index_select(0, samples), arguments)
            images.index_copy_(0, samples, result)
        return images

    def _groups(
        self, seeds: Tensor, layer: int, height: int, width: int
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Operations of a layer with their samples and arguments, those without samples left out.

        Yields:
            Index into `increasing_operations`, int64 [n], and float64 [n, …], on the host.
        """
        operations = increasing_operations(self.fill)
        chosen, levels, signs = self.draw(seeds, layer)
        counts = torch.bincount(chosen + 1, minlength=len(operations) + 1).tolist()
        # The first group holds the samples that are left alone.
        _, *groups = chosen.argsort(stable=True).split(counts)
        for which, (operation, rows) in enumerate(zip(operations, groups, strict=True)):
            if len(rows) > 0:
                yield which, rows, operation.arguments(levels[rows], signs[rows], height, width)

    def names_of(self, seeds: Tensor) -> list[list[str]]:
        """Name the operations that each sample goes through, in order, such as ``Posterize``.

        Args:
            seeds: int64 [B], on the host.
        """
        operations = increasing_operations(self.fill)
        names = [op.name.removesuffix("Increasing").removesuffix("Rel") for op in operations]
        layers = [self.draw(seeds, layer)[0].tolist() for layer in range(self.policy.layers)]
        of_samples = zip(*layers, strict=True)
        return [[names[index] for index in drawn if index >= 0] for drawn in of_samples]

    def draw(self, seeds: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw what a layer does to each sample.

        Args:
            seeds: int64 [B].
            layer: Which of the policy's layers, from 0.

        Returns:
            Operation int64 [B] (index into `increasing_operations`, -1 for none), level float64 [B]
            (0 to 10), sign float64 [B] (-1 or 1).
        """
        policy = self.policy
        chosen = draw_uniform(seeds, Stream.OPERATION, layer).mul_(OPERATION_COUNT).long()
        applied = draw_uniform(seeds, Stream.APPLY, layer) < policy.probability
        levels = draw_normal(seeds, Stream.LEVEL, layer).mul_(policy.level_std).add_(policy.level)
        negative = draw_uniform(seeds, Stream.SIGN, layer) < 0.5
        signs = torch.where(negative, -1.0, 1.0).double()
        return torch.where(applied, chosen, -1), levels.clamp_(0.0, _TOP_LEVEL), signs


def increasing_operations(fill: Tensor) -> Sequence[Operation]:
    """List timm's ``inc1`` operations: the higher the level, the further from the image.

    Args:
        fill: uint8 [3], on the device of the images to come.
    """
    move_x = partial(transform_affine, fill=fill, axis="x")
    move_y = partial(transform_affine, fill=fill, axis="y")
    turn = partial(transform_affine, fill=fill, axis="both")
    return (
        Operation("AutoContrast", _nothing, colour.auto_contrast),
        Operation("Equalize", _nothing, colour.equalize),
        Operation("Invert", _nothing, colour.invert),
        Operation("Rotate", _rotation, turn),
        Operation("PosterizeIncreasing", _bits_kept, colour.posterize),
        Operation("SolarizeIncreasing", _solarize_threshold, colour.solarize),
        Operation("SolarizeAdd", _solarize_addend, colour.solarize_add),
        Operation("ColorIncreasing", _enhancement, colour.saturate),
        Operation("ContrastIncreasing", _enhancement, colour.adjust_contrast),
        Operation("BrightnessIncreasing", _enhancement, colour.brighten),
        Operation("SharpnessIncreasing", _enhancement, colour.sharpen),
        Operation("ShearX", _shear_x, move_x),
        Operation("ShearY", _shear_y, move_y),
        Operation("TranslateXRel", _translation_x, move_x),
        Operation("TranslateYRel", _translation_y, move_y),
    )


def _nothing(levels: Tensor, signs: Tensor, height: int, width: int) -> Tensor:
    return levels[:, None]


def _bits_kept(levels: Tensor, signs: Tensor, height: int, width: int) -> Tensor:
    """4 bits down to 0, a black image, at level 10: as published, though Pillow now refuses it."""
    return 4 - (levels / _TOP_LEVEL * 4).floor()[:, None]


def _solarize_threshold(levels: Tensor, signs: Tensor, height: int, width: int) -> Tensor:
    return 256 - (levels / _TOP_LEVEL * 256).floor()[:, None]


def _solarize_addend(levels: Tensor, signs: Tensor, height: int, width: int) -> Tensor:
    return (levels / _TOP_LEVEL * 110).floor()[:, None]


def _enhancement(levels: Tensor, signs: Tensor, height: int, width: int) -> Tensor:
    return (1.0 + signs * (levels / _TOP_LEVEL * _MAX_ENHANCEMENT)).clamp(min=0.1)[:, None]


def _rotation(levels: Tensor, signs: Tensor, height: int, width: int) -> Tensor:
    """Matrix that turns the image about its centre, anticlockwise for a positive angle."""
    angles = signs * (levels / _TOP_LEVEL * _MAX_DEGREES) * (-math.pi / 180)
    # Rounded as Pillow does, so that 30 degrees hits the edge of a pixel or misses it as there.
    cos, sin = angles.cos().round(decimals=15), angles.sin().round(decimals=15)
    centre_x, centre_y = width / 2, height / 2
    offset_x = -cos * centre_x - sin * centre_y + centre_x
    offset_y = sin * centre_x - cos * centre_y + centre_y
    return torch.stack([cos, sin, offset_x, -sin, cos, offset_y], dim=1)


def _shear_x(levels: Tensor, signs: Tensor, height: int, width: int) -> Tensor:
    return _unit_matrix_with(1, signs * (levels / _TOP_LEVEL * _MAX_SHEAR))


def _shear_y(levels: Tensor, signs: Tensor, height: int, width: int) -> Tensor:
    return _unit_matrix_with(3, signs * (levels / _TOP_LEVEL * _MAX_SHEAR))


def _translation_x(levels: Tensor, signs: Tensor, height: int, width: int) -> Tensor:
    return _unit_matrix_with(2, signs * (levels / _TOP_LEVEL * _MAX_TRANSLATION_FRACTION) * width)


def _translation_y(levels: Tensor, signs: Tensor, height: int, width: int) -> Tensor:
    return _unit_matrix_with(5, signs * (levels / _TOP_LEVEL * _MAX_TRANSLATION_FRACTION) * height)


def _unit_matrix_with(column: int, values: Tensor) -> Tensor:
    """Identity matrices [n, 6] with one column replaced."""
    matrices = torch.tensor([1.0, 0, 0, 0, 1.0, 0], dtype=torch.float64).repeat(len(values), 1)
    matrices[:, column] = values
    return matrices
