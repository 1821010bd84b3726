"""Random erasing (arXiv 1708.04896) in timm's "pixel" mode: one rectangle becomes noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.augment.draws import Stream, draw_normal, draw_uniform
from pretrain.augment.transfer import send

_AREA_FRACTION = (0.02, 1 / 3)
_ASPECT = (0.3, 1 / 0.3)
_TRIES = 10


@dataclass(frozen=True)
class Boxes:
    """Rectangles to erase, int64 [n] each, on the host; ``sample`` is the position in the batch."""

    sample: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def draw_boxes(seeds: Tensor, probability: float, height: int, width: int) -> Boxes:
    """Draw which samples are erased, and where.

    The area is uniform, the aspect ratio (height over width) uniform in its logarithm. A box that
    does not fit is drawn again, ten times at most; then the sample is left alone.

    Args:
        seeds: int64 [B], on the host.
        probability: Chance that a sample is erased.
        height: Of the images, pixels.
        width: Of the images, pixels.
    """
    tries = torch.arange(_TRIES)
    columns = seeds[:, None]
    area = (
        height * width * _between(draw_uniform(columns, Stream.ERASE_AREA, tries), _AREA_FRACTION)
    )
    logarithms = (math.log(_ASPECT[0]), math.log(_ASPECT[1]))
    aspect = _between(draw_uniform(columns, Stream.ERASE_ASPECT, tries), logarithms).exp()
    heights = (area * aspect).sqrt().round().long()  # [B, tries]
    widths = (area / aspect).sqrt().round().long()
    fits = (heights < height) & (widths < width)
    chosen = fits.int().argmax(dim=1, keepdim=True)  # the first that fits
    erased = (draw_uniform(seeds, Stream.ERASE) < probability) & fits.any(dim=1)
    sample = erased.nonzero().flatten()
    box_height = heights.gather(1, chosen).flatten()
    box_width = widths.gather(1, chosen).flatten()
    top = (draw_uniform(seeds, Stream.ERASE_TOP) * (height - box_height + 1)).long()
    left = (draw_uniform(seeds, Stream.ERASE_LEFT) * (width - box_width + 1)).long()
    return Boxes(sample, top[sample], left[sample], box_height[sample], box_width[sample])


def erase(images: Tensor, seeds: Tensor, probability: float) -> Tensor:
    """Fill one rectangle of some images with standard normal noise, per pixel and channel.

    Boxes are drawn on the host and only their pixels are touched; the device is not waited for.

    Args:
        images: float [B, C, H, W], normalised, on any device; changed in place.
        seeds: int64 [B], on the host.
        probability: Chance that a sample is erased.

    Returns:
        ``images``.
    """
    channels, height, width = images.shape[1:]
    boxes = draw_boxes(seeds, probability, height, width)
    if len(boxes.sample) == 0:
        return images
    areas = boxes.height * boxes.width
    total = int(areas.sum())
    drawn = torch.stack(
        [
            seeds[boxes.sample],
            boxes.sample,
            boxes.top,
            boxes.left,
            boxes.width,
            areas.cumsum(0) - areas,
            areas,
        ]
    )
    (columns,) = send([drawn], images.device)
    # One entry per erased pixel from here on: [P].
    seed, sample, top, left, box_width, start, _ = columns.repeat_interleave(
        columns[6], dim=1, output_size=total
    )
    offset = torch.arange(total, device=images.device) - start  # inside its box
    row = top + offset // box_width
    column = left + offset % box_width
    channel = torch.arange(channels, device=images.device)
    noise = draw_normal(
        seed[:, None], Stream.ERASE_NOISE, offset[:, None] * channels + channel, torch.float32
    )
    pixels = images.permute(0, 2, 3, 1)  # a view: writing here writes the images
    pixels.index_put_((sample, row, column), noise.to(images.dtype))
    return images


def _between(uniform: Tensor, limits: tuple[float, float]) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * uniform
