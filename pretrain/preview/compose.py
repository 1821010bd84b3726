"""From a batch and what augmentation made of it to the values of a picture.

Nothing here draws random numbers or changes a tensor.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.augment.masking import MaskedAugment
from pretrain.augment.mixing import Mix
from pretrain.augment.pipeline import Augment
from pretrain.config.schema import AugmentConfig, RunConfig
from pretrain.data.batch import Batch
from pretrain.data.manifest import Manifest
from pretrain.preview.sheet import Group, Label, Panel, Pixels, Sheet

HIDDEN_GREY = 127
"""Value of the pixels that the model is not given."""
_WEIGHT_SHOWN = 1e-6
"""Least weight beyond the smoothing's share that makes a class one of the target's labels."""


class Given(NamedTuple):
    """One micro-batch as the engine gets it.

    Attributes:
        inputs: images, float [B, 3, H, W], normalised; in masked pre-training with what is hidden,
            bool [B, S, S].
        targets: float [B, Y]; in masked pre-training the inputs again.
    """

    inputs: Tensor | tuple[Tensor, Tensor]
    targets: Tensor | tuple[Tensor, Tensor]


class Where(NamedTuple):
    """Which micro-batch it is.

    Attributes:
        step: from 0.
        number: of the micro-batch in the global batch, from 0.
        micro_batches: of a global batch.
    """

    step: int
    number: int
    micro_batches: int


def sheet_of(
    config: RunConfig,
    manifest: Manifest,
    augment: Augment | MaskedAugment,
    batch: Batch,
    given: Given,
    where: Where,
    *,
    images: int,
    crops: bool = False,
) -> Sheet:
    """Compose the picture of a micro-batch.

    Args:
        config: of the run.
        manifest: of its data, for the names of the classes.
        augment: what made ``given`` of ``batch``; asked again for its draws, which are pure
            functions of the seeds.
        batch: the loader's, on the host.
        given: what augmentation made of it, on any device; the images shown are waited for.
        where: which micro-batch it is.
        images: most images shown; as many of each mixing group, its first.
        crops: show also the random crop that each image was made of.
    """
    alone = augment.augment if isinstance(augment, MaskedAugment) else augment
    count, _, height, width = batch.images.shape
    first = first_group(config.augment, where.number, count)
    mixes = alone.draw_mixes(count, step=where.step, first_group=first, height=height, width=width)
    rows = shown_rows(count, len(mixes), images)
    flat = [row for group in rows for row in group]
    panels = iter(_panels(config, manifest, alone, batch, given, mixes, flat, crops=crops))
    return Sheet(
        title=_title(config, where, len(flat), count),
        notes=_notes(config, len(manifest.classes)),
        groups=tuple(
            Group(_heading(config, mix, first + number), tuple(next(panels) for _ in group))
            for number, (mix, group) in enumerate(zip(mixes, rows, strict=True))
            if group
        ),
    )


def _panels(
    config: RunConfig,
    manifest: Manifest,
    augment: Augment,
    batch: Batch,
    given: Given,
    mixes: list[Mix],
    rows: list[int],
    *,
    crops: bool,
) -> list[Panel]:
    count, _, height, width = batch.images.shape
    pixels = _pixels(given.inputs, rows, config.augment)
    labels = _labels(given.targets, rows, manifest, config.augment.label_smoothing)
    draws = augment.draws_of(batch.seeds, height=height, width=width)
    partners = _partners(count, mixes)
    panels = []
    for place, row in enumerate(rows):
        partner = partners[row]
        panels.append(
            Panel(
                pixels=pixels[place],
                labels=labels[place],
                sample_id=int(batch.sample_ids[row]),
                partner_id=None if partner is None else int(batch.sample_ids[partner]),
                draws=draws[row],
                partner_draws=() if partner is None else draws[partner],
                crop=_channels_last(batch.images[row]) if crops else None,
            )
        )
    return panels


def first_group(settings: AugmentConfig, number: int, micro_batch: int) -> int:
    """Return the index, in the global batch, of the first mixing group of a micro-batch."""
    return number * micro_batch // settings.mix_group


def shown_rows(count: int, groups: int, images: int) -> list[list[int]]:
    """Choose what is shown: the same number of each group, its first; of some groups one more.

    Args:
        count: images of the micro-batch.
        groups: equal parts of it.
        images: most to show.

    Returns:
        For each group the places of its images in the micro-batch; none for the last groups where
        there are more groups than images.

    Example:
        >>> shown_rows(8, 2, 5)
        [[0, 1, 2], [4, 5]]
    """
    size = count // groups
    share, more = divmod(min(images, count), groups)
    return [
        list(range(group * size, group * size + share + (group < more))) for group in range(groups)
    ]


def unnormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo `pretrain.augment.pipeline.normalize`: to the nearest value that an image can have.

    Args:
        images: float [B, C, H, W].
        mean: of each channel, on the scale 0 to 1.
        std: deviation of each channel, on the scale 0 to 1.

    Returns:
        uint8 [B, C, H, W] on the host. Noise beyond black and white is cut off; what is not
        a number is black.
    """
    shift, scale = (torch.tensor(part).view(-1, 1, 1) * 255 for part in (mean, std))
    values = images.detach().cpu().float() * scale + shift
    return values.nan_to_num_(0.0).round_().clamp_(0, 255).to(torch.uint8)


def _pixels(
    inputs: Tensor | tuple[Tensor, Tensor], rows: list[int], settings: AugmentConfig
) -> list[Pixels]:
    images, hidden = inputs if isinstance(inputs, tuple) else (inputs, None)
    values = unnormalise(images[rows], settings.mean, settings.std)
    if hidden is not None:
        times = values.shape[-1] // hidden.shape[-1]
        squares = hidden[rows].cpu()
        covered = squares.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
        values = torch.where(covered[:, None], HIDDEN_GREY, values)
    return [_channels_last(image) for image in values]


def _channels_last(image: Tensor) -> Pixels:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _labels(
    targets: Tensor | tuple[Tensor, Tensor],
    rows: list[int],
    manifest: Manifest,
    smoothing: float,
) -> list[tuple[Label, ...]]:
    """The classes that stand out of each target; at most two are mixed."""
    if isinstance(targets, tuple):
        return [()] * len(rows)
    floor = smoothing / targets.shape[1]
    heaviest = targets[rows].detach().topk(min(2, targets.shape[1]), dim=1)
    weights, classes = heaviest.values.cpu().tolist(), heaviest.indices.cpu().tolist()
    return [
        tuple(
            Label(manifest.classes[index], manifest.class_names[index], weight)
            for weight, index in zip(*of_image, strict=True)
            if weight - floor > _WEIGHT_SHOWN
        )
        for of_image in zip(weights, classes, strict=True)
    ]


def _partners(count: int, mixes: list[Mix]) -> list[int | None]:
    """Which row of the batch is mixed into each: its mirror image in the group."""
    size = count // len(mixes)
    return [
        first + size - 1 - place if mix.kept_fraction < 1 else None
        for first, mix in zip(range(0, count, size), mixes, strict=True)
        for place in range(size)
    ]


def _title(config: RunConfig, where: Where, shown: int, count: int) -> str:
    part = f"{shown} of {count}" if shown < count else str(shown)
    return (
        f"{config.name}, seed {config.seed}: what the model is given in step {where.step} "
        f"({part} images of micro-batch {where.number} of {where.micro_batches})"
    )


def _heading(config: RunConfig, mix: Mix, group: int) -> str:
    if config.masking is not None:
        side = config.masking.squares_per_side(config.model.image_size)
        hidden = config.masking.hidden_squares(config.model.image_size)
        size = config.masking.patch_size
        return f"masked: {hidden} of {side * side} squares of {size} x {size} pixels are hidden"
    if not config.augment.mixes:
        return "no mixing in this config"
    if mix.kept_fraction == 1:
        return f"group {group}: not mixed"
    kept, taken = f"{mix.kept_fraction:.1%}", f"{1 - mix.kept_fraction:.1%}"
    if mix.box is None:
        return f"group {group}: mixup, {kept} of each image and {taken} of its partner"
    top, bottom, left, right = mix.box
    return (
        f"group {group}: cutmix, {kept} of each image and {taken} of its partner: "
        f"a box {right - left} wide and {bottom - top} high"
    )


def _notes(config: RunConfig, classes: int) -> tuple[str, ...]:
    if config.masking is not None:
        return (
            "Grey squares are hidden: in their place the model is given one learnt token, and it "
            "learns to restore their pixels. Labels are not looked at.",
            "Small: sample id and what was drawn for it.",
        )
    weights = "Per cent: weight of the class in the target."
    if config.augment.label_smoothing > 0:
        weights += (
            f" Label smoothing spreads {config.augment.label_smoothing:.4g} of every target "
            f"evenly over all {classes:,} classes; the rest is the labels'."
        )
    small = "Small: sample id and what was drawn for it"
    return (weights, f"{small}; + its partner's." if config.augment.mixes else f"{small}.")
