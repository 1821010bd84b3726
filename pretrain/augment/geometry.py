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
    x, y = _source_points(matrices, height, width, axis)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    columns, x_fraction = _taps(x, width)
    rows, y_fraction = _taps(y, height)
    starts = [row * width for row in rows]
    flat = images.flatten(2)

    def read(start: Tensor, column: Tensor) -> Tensor:
        index = (start + column).flatten(1)[:, None].expand_as(flat)
        return flat.gather(2, index).view_as(images).float()

    if axis == "x":
        result = _cubic([read(starts[1], column) for column in columns], x_fraction)
    elif axis == "y":
        result = _cubic([read(start, columns[1]) for start in starts], y_fraction)
    else:
        across = [
            _cubic([read(start, column) for column in columns], x_fraction) for start in starts
        ]
        result = _cubic(across, y_fraction)
    result = result.clamp_(0.0, 255.0).to(torch.uint8)
    return torch.where(inside[:, None], result, fill[:, None, None])


def _source_points(matrices: Tensor, height: int, width: int, axis: Axis) -> tuple[Tensor, Tensor]:
    """Where each output pixel comes from, in pixels from the corner.

    Returns:
        Two float64 that broadcast to [n, H, W].
    """
    x = torch.arange(width, dtype=torch.float64, device=matrices.device).add_(0.5)[None, None]
    y = torch.arange(height, dtype=torch.float64, device=matrices.device).add_(0.5)[None, :, None]
    a, b, c, d, e, f = (column[:, None, None] for column in matrices.unbind(dim=1))
    if axis == "x":
        return a * x + b * y + c, y
    if axis == "y":
        return x, d * x + e * y + f
    return a * x + b * y + c, d * x + e * y + f


def _taps(points: Tensor, size: int) -> tuple[list[Tensor], Tensor]:
    """Split positions along one axis into the four nearest pixels and a fraction.

    Args:
        points: float64 [n, H, W], or 1 in place of an axis along which they are equal.
        size: Pixels along the axis.

    Returns:
        Four int64 of pixel indices, clipped to the image, of the shape of ``points``; float32 of
        that shape with a channel axis, 0 to 1.
    """
    shifted = points - 0.5
    first = shifted.floor()
    fraction = shifted.sub_(first).float()[:, None]
    first = first.long()
    return [(first + offset).clamp_(0, size - 1) for offset in (-1, 0, 1, 2)], fraction


def _cubic(taps: list[Tensor], fraction: Tensor) -> Tensor:
    """Interpolate between the middle two of four values; exact where all four are equal.

    The four tensors are used up as working space: allocating costs more than the arithmetic.
    """
    before, left, right, after = taps
    after -= right
    right -= before  # slope
    torch.sub(left, before, out=before)
    after += before  # cubic coefficient
    before += after  # quadratic coefficient, negated
    return after.mul_(fraction).sub_(before).mul_(fraction).add_(right).mul_(fraction).add_(left)
