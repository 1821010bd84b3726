"""The order of augmentation: flip, RandAugment, normalise, erase, mix."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.augment.draws import Stream, draw_uniform
from pretrain.augment.erasing import draw_boxes, erase
from pretrain.augment.mixing import Mix, check_groups, draw_mix, mix_groups, soft_targets
from pretrain.augment.policy import parse_policy
from pretrain.augment.randaugment import RandAugment
from pretrain.augment.transfer import send
from pretrain.config.schema import AugmentConfig


class Augment:
    """Turns decoded crops into what the model trains on.

    Before mixing, a sample's pixels are a function of its image and its seed; how a group is mixed
    is a function of (run seed, step, group). Neither depends on the world size, the micro-batch or
    what ran before.

    Args:
        settings: Section ``augment`` of the config.
        num_classes: Y, the width of the targets.
        seed: Of the run.

    Raises:
        ConfigError: ``settings.randaugment`` is not in timm's notation.
    """

    def __init__(self, settings: AugmentConfig, *, num_classes: int, seed: int):
        self.settings = settings
        self.num_classes = num_classes
        self.seed = seed
        self.randaugment = None
        if settings.randaugment is not None:
            red, green, blue = (min(255, round(255 * mean)) for mean in settings.mean)
            self.randaugment = RandAugment(parse_policy(settings.randaugment), (red, green, blue))

    def __call__(
        self, images_u8: Tensor, labels: Tensor, seeds: Tensor, *, step: int, first_group: int
    ) -> tuple[Tensor, Tensor]:
        """Augment one micro-batch.

        Args:
            images_u8: uint8 [B, 3, H, W], RGB, on any device; left as it is.
            labels: int64 [B], on the device of ``images_u8``.
            seeds: int64 [B], one per sample. On the host nothing waits for the device; elsewhere
                they are fetched, one wait.
            step: Optimizer step, from 0.
            first_group: Index, in the step's global batch, of the micro-batch's first mixing group.

        Returns:
            float32 [B, 3, H, W], normalised; float32 [B, Y], rows summing to 1.

        Raises:
            ConfigError: Mixing is on and B is not a multiple of ``mix_group``.
        """
        height, width = images_u8.shape[2:]
        mixes = self.draw_mixes(
            len(images_u8), step=step, first_group=first_group, height=height, width=width
        )
        images = self.augment_samples(images_u8, seeds)
        if self.settings.mixes:
            images = mix_groups(images, mixes)
        targets = soft_targets(
            labels,
            mixes,
            num_classes=self.num_classes,
            label_smoothing=self.settings.label_smoothing,
        )
        return images, targets

    def draw_mixes(
        self, batch_size: int, *, step: int, first_group: int, height: int, width: int
    ) -> list[Mix]:
        """Draw how each group of a micro-batch is mixed: a pure function of its arguments.

        Args:
            batch_size: B, images of the micro-batch.
            step: Optimizer step, from 0.
            first_group: As `__call__`.
            height: Of the images, pixels.
            width: Of the images, pixels.

        Raises:
            ConfigError: Mixing is on and B is not a multiple of ``mix_group``.
        """
        return [
            draw_mix(
                self.settings,
                seed=self.seed,
                step=step,
                group=first_group + group,
                height=height,
                width=width,
            )
            for group in range(check_groups(batch_size, self.settings))
        ]

    def draws_of(self, seeds: Tensor, *, height: int, width: int) -> list[tuple[str, ...]]:
        """Name what `augment_samples` does to each sample, in order, for people.

        Args:
            seeds: int64 [B].
            height: Of the images, pixels.
            width: Of the images, pixels.

        Returns:
            For each sample those that were drawn: ``flip``, operations of RandAugment, ``erase``.
        """
        seeds = seeds.cpu()
        named = [[] for _ in range(len(seeds))]
        for sample in is_flipped(seeds, self.settings.flip_probability).nonzero().flatten():
            named[sample].append("flip")
        if self.randaugment is not None:
            for sample, operations in enumerate(self.randaugment.names_of(seeds)):
                named[sample] += operations
        boxes = draw_boxes(seeds, self.settings.erase_probability, height, width)
        for sample in boxes.sample:
            named[sample].append("erase")
        return [tuple(names) for names in named]

    def augment_samples(self, images_u8: Tensor, seeds: Tensor) -> Tensor:
        """Do all that concerns each sample alone: everything but mixing.

        Args:
            images_u8: uint8 [B, 3, H, W], RGB, on any device; left as it is.
            seeds: int64 [B].

        Returns:
            float32 [B, 3, H, W], normalised.
        """
        settings = self.settings
        seeds = seeds.cpu()
        images = flip(images_u8, seeds, settings.flip_probability)
        if self.randaugment is not None:
            images = self.randaugment(images, seeds)
        images = normalize(images, settings.mean, settings.std)
        return erase(images, seeds, settings.erase_probability)


def flip(images: Tensor, seeds: Tensor, probability: float) -> Tensor:
    """Mirror some images left to right.

    Args:
        images: [B, C, H, W], left as it is.
        seeds: int64 [B], on the host.
        probability: Chance that an image is mirrored.

    Returns:
        A new tensor of the shape and type of ``images``.
    """
    flipped = is_flipped(seeds, probability).nonzero().flatten()
    (samples,) = send([flipped], images.device)
    images = images.clone(memory_format=torch.contiguous_format)
    return images.index_copy_(0, samples, images.index_select(0, samples).flip(-1))


def is_flipped(seeds: Tensor, probability: float) -> Tensor:
    """Draw which samples are mirrored: bool of the shape of ``seeds``."""
    return draw_uniform(seeds, Stream.FLIP) < probability


def normalize(images_u8: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Shift and scale each channel; all that evaluation does.

    Args:
        images_u8: uint8 [B, C, H, W].
        mean: Of each channel, on the scale 0 to 1.
        std: Deviation of each channel, on the scale 0 to 1.

    Returns:
        float32 [B, C, H, W]: (value / 255 - mean) / std.
    """
    of_channels = [
        (torch.tensor(part, dtype=torch.float64) * 255).float().view(-1, 1, 1)
        for part in (mean, std)
    ]
    shift, scale = send(of_channels, images_u8.device)
    return images_u8.float().sub_(shift).div_(scale)
