"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) inside groups, and soft targets.

Semantics are those of timm's "batch" mode, a group standing for its batch: one draw per group,
sample i paired with its mirror image in the group.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.augment.transfer import send
from pretrain.config.schema import AugmentConfig
from pretrain.errors import ConfigError

_MIXING_DOMAIN = 0x4D4958  # keeps these draws apart from other users of the run seed


@dataclass(frozen=True)
class Mix:
    """How one group is mixed.

    Attributes:
        kept_fraction: Lambda: weight of the sample itself in the target, 0 to 1; for a box exactly
            the area left of the sample.
        box: Top, bottom, left, right in pixels (half open) of what CutMix takes from the partner;
            None for mixup.
    """

    kept_fraction: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(
    settings: AugmentConfig, *, seed: int, step: int, group: int, height: int, width: int
) -> Mix:
    """Draw how a group is mixed: a pure function of its arguments.

    Args:
        settings: Probabilities and Beta parameters.
        seed: Of the run.
        step: Optimizer step, from 0.
        group: Index of the group in the global batch of that step.
        height: Of the images, pixels.
        width: Of the images, pixels.

    Returns:
        The draw; lambda 1 where the group is left alone.
    """
    if not settings.mixes:
        return Mix(kept_fraction=1.0)
    # RandomState's sequences are frozen by numpy's compatibility policy, Generator's are not.
    sequence = np.random.SeedSequence([_MIXING_DOMAIN, seed, step, group])
    random = np.random.RandomState(np.random.MT19937(sequence))
    mix, switch, row, column = random.random_sample(4)
    if mix >= settings.mix_probability:
        return Mix(kept_fraction=1.0)
    both = settings.mixup_alpha > 0 and settings.cutmix_alpha > 0
    if switch < settings.mix_switch_probability if both else settings.cutmix_alpha > 0:
        kept = random.beta(settings.cutmix_alpha, settings.cutmix_alpha)
        return _cut_box(kept, row, column, height, width)
    return Mix(kept_fraction=float(random.beta(settings.mixup_alpha, settings.mixup_alpha)))


def _cut_box(kept: float, row: float, column: float, height: int, width: int) -> Mix:
    """Place a box of about the area 1 - ``kept`` with its centre anywhere; correct lambda."""
    side_fraction = (1.0 - kept) ** 0.5
    half_height = int(height * side_fraction) // 2
    half_width = int(width * side_fraction) // 2
    centre_y, centre_x = int(row * height), int(column * width)
    top, bottom = max(centre_y - half_height, 0), min(centre_y + half_height, height)
    left, right = max(centre_x - half_width, 0), min(centre_x + half_width, width)
    area = (bottom - top) * (right - left)
    return Mix(kept_fraction=1.0 - area / (height * width), box=(top, bottom, left, right))


def mix_groups(images: Tensor, mixes: list[Mix]) -> Tensor:
    """Mix each sample with its mirror image in its group.

    Args:
        images: float [B, C, H, W], contiguous; B is a multiple of the number of groups. Changed in
            place.
        mixes: One per group, in order.

    Returns:
        ``images``; the device is not waited for.
    """
    height, width = images.shape[2:]
    lead = (len(mixes), 1, 1, 1, 1)
    boxes = torch.tensor([mix.box or (0, 0, 0, 0) for mix in mixes])
    blends = torch.tensor(
        [1.0 if mix.box else mix.kept_fraction for mix in mixes], dtype=torch.float64
    )
    boxes, *parts = send([boxes, blends, 1.0 - blends], images.device)
    top, bottom, left, right = boxes.view(*lead, 4).unbind(dim=-1)
    y = torch.arange(height, device=images.device)[:, None]
    x = torch.arange(width, device=images.device)
    outside = (y < top) | (y >= bottom) | (x < left) | (x >= right)  # [G, 1, 1, H, W]
    own, other = ((outside * part.view(lead)).to(images.dtype) for part in parts)
    other = other + (~outside).to(images.dtype)
    groups = images.unflatten(0, (len(mixes), -1))
    partners = groups.flip(1).mul_(other)
    groups.mul_(own).add_(partners)
    return images


def soft_targets(
    labels: Tensor, mixes: list[Mix], *, num_classes: int, label_smoothing: float
) -> Tensor:
    """Make the targets of a mixed batch.

    A label alone is 1 - s + s / Y at its class and s / Y elsewhere (s: smoothing); the target is
    lambda of the sample's and 1 - lambda of its partner's.

    Args:
        labels: int64 [B], 0 to Y - 1; B is a multiple of the number of groups.
        mixes: One per group, in order.
        num_classes: Y.
        label_smoothing: Mass spread over all classes, 0 to 1.

    Returns:
        float32 [B, Y], rows summing to 1, on the device of ``labels``.
    """
    groups = labels.view(len(mixes), -1)
    kept = torch.tensor([mix.kept_fraction for mix in mixes], dtype=torch.float64)[:, None]
    peak = 1.0 - label_smoothing
    targets = torch.full(
        (len(labels), num_classes), label_smoothing / num_classes, device=labels.device
    )
    masses = send([(part * peak).float() for part in (kept, 1.0 - kept)], labels.device)
    for mass, classes in zip(masses, (groups, groups.flip(1)), strict=True):
        mass = mass.expand_as(groups).reshape(-1, 1)
        targets.scatter_add_(1, classes.reshape(-1, 1), mass)
    return targets


def check_groups(batch_size: int, settings: AugmentConfig) -> int:
    """Count the groups of a batch.

    Raises:
        ConfigError: The batch does not hold whole groups.
    """
    if not settings.mixes:
        return 1
    if batch_size % settings.mix_group:
        raise ConfigError(
            f"augment.mix_group: a micro-batch must hold whole groups of {settings.mix_group}, got "
            f"{batch_size} images; choose a mix_group that divides the micro-batch"
        )
    return batch_size // settings.mix_group
