"""Affine transforms with bicubic interpolation, matching Pillow's ``Image.transform``."""

from typing import Literal

import torch
from torch import Tensor

Axis = Literal["x", "y", "both"]
"""Along which axis of the image pixels move."""


def transform_affine(images: Tensor, matrices: Tensor, fill: Tensor, axis: Axis) -> Tensor:
    """Resample images at affinely moved positions.

    An output pixel with centre (x, y) takes the value of the source at (a·x + b·y + c,
    d·x + e·y + f), interpolated by cubic convolution with coefficient -1 (Keys, IEEE TASSP 29,
    1981) over source pixels repeated at the edge, truncated to whole levels. Where that point lies
    outside the source, the pixel takes ``fill``. Equal to Pillow's BICUBIC except that values are
    interpolated in float32: rarely a pixel differs by one level.

    Args:
        images: uint8 [n, C, H, W].
        matrices: float64 [n, 6], rows (a, b, c, d, e, f), on the device of ``images``.
        fill: uint8 [C], on the device of ``images``.
        axis: "x" or "y" where all ``matrices`` leave the other axis as it is: a quarter of the
            work. Nothing is checked: a wrong claim gives a wrong image.

    Returns:
        uint8 [n, C, H, W].
    """
    height, width = images.shape[2:]
    x, y = _source_points(matrices, height, width)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    columns, x_fraction = _taps(x, width)
    rows, y_fraction = _taps(y, height)
    flat = images.flatten(2)

    def value(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).flatten(1)[:, None].expand(-1, flat.shape[1], -1)
        return flat.gather(2, index).view_as(images).float()

    if axis == "x":
        result = _cubic([value(rows[1], column) for column in columns], x_fraction)
    elif axis == "y":
        result = _cubic([value(row, columns[1]) for row in rows], y_fraction)
    else:
        across = [_cubic([value(row, column) for column in columns], x_fraction) for row in rows]
        result = _cubic(across, y_fraction)
    result = result.clamp_(0.0, 255.0).to(torch.uint8)
    return torch.where(inside[:, None], result, fill[:, None, None])


def _source_points(matrices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each output pixel comes from: two float64 [n, H, W], in pixels from the corner."""
    x = torch.arange(width, dtype=torch.float64, device=matrices.device) + 0.5
    y = torch.arange(height, dtype=torch.float64, device=matrices.device)[:, None] + 0.5
    a, b, c, d, e, f = (column[:, None, None] for column in matrices.unbind(dim=1))
    return a * x + b * y + c, d * x + e * y + f


def _taps(points: Tensor, size: int) -> tuple[list[Tensor], Tensor]:
    """Split positions along one axis into the four nearest pixels and a fraction.

    Returns:
        Four int64 [n, H, W] of pixel indices, clipped to the image; float32 [n, 1, H, W], 0 to 1.
    """
    shifted = points - 0.5
    first = shifted.floor()
    fraction = (shifted - first).float()[:, None]
    first = first.long()
    return [(first + offset).clamp_(0, size - 1) for offset in (-1, 0, 1, 2)], fraction


def _cubic(taps: list[Tensor], fraction: Tensor) -> Tensor:
    """Interpolate between the middle two of four values; exact where all four are equal."""
    before, left, right, after = taps
    slope = right - before
    bend = 2 * (before - left) + right - after
    twist = left - before + after - right
    return twist.mul_(fraction).add_(bend).mul_(fraction).add_(slope).mul_(fraction).add_(left)
