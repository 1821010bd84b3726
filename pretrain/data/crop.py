"""Pixels to the square the network takes: where to cut, and resizing.

The training crop is the published RandomResizedCrop (Szegedy et al., "Going deeper with
convolutions", 2014; as in torchvision and timm: ten tries, then the largest centred crop), drawn
from the sample's own seed. Resizing is antialiased, on uint8, the same arithmetic as Pillow's to
within one or two of 255 levels.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from pretrain.data.decode import DecodeBuffer, PixelArray, decode_rgb, read_header

Filter = Literal["bicubic", "bilinear"]

_TRIES = 10
_LONGEST_STRIP = 32
"""Long side over short side, beyond which evaluation looks at the middle only."""
_MASK = (1 << 64) - 1
_CROP_STREAM = 0xC2B2AE3D27D4EB4F
"""Separates the crop's draws from all others made from a sample's seed."""


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_resized_crop_box(
    seed: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Draw the training crop of one sample.

    Args:
        seed: the sample's seed.
        height: rows of the image.
        width: columns of the image.
        scale: least and greatest area, as a fraction of the image.
        ratio: least and greatest width over height; drawn uniformly in the logarithm.
    """
    draws = _Uniform(seed ^ _CROP_STREAM)
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = height * width * draws.between(*scale)
        aspect = math.exp(draws.between(*log_ratio))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = draws.below(height - crop_height + 1)
            left = draws.below(width - crop_width + 1)
            return Box(top, left, crop_height, crop_width)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = min(width, max(1, round(height * aspect)))
    crop_height = min(height, max(1, round(width / aspect)))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def train_image(
    data: bytes,
    seed: int,
    image_size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    buffer: DecodeBuffer | None = None,
    resize_filter: Filter = "bicubic",
) -> torch.Tensor:
    """Decode an image file and take its training crop: uint8 [3, image_size, image_size].

    A JPEG whose crop is far larger than the target is decoded at 1/2, 1/4 or 1/8 first. With a
    ``buffer`` the result is valid until that is used again.

    Raises:
        ImageError: the file cannot be decoded.
    """
    header = read_header(data)
    box = random_resized_crop_box(seed, header.height, header.width, scale, ratio)
    factor = _decode_factor(min(box.height, box.width), image_size)
    pixels = decode_rgb(data, header, factor, buffer)
    if pixels.shape[:2] != (header.height, header.width):
        box = _scaled(box, factor, header.height // factor, header.width // factor)
    cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    return resize(cut, image_size, image_size, resize_filter)


def eval_image(
    data: bytes,
    image_size: int,
    resize_short_side: int | None,
    buffer: DecodeBuffer | None = None,
) -> torch.Tensor:
    """Decode an image file for evaluation: uint8 [3, image_size, image_size].

    Args:
        data: the whole file.
        image_size: side of the result.
        resize_short_side: resize the short side to this and cut the centre; None squashes.
        buffer: to decode into; the result is then valid until that is used again.

    Raises:
        ImageError: the file cannot be decoded.
    """
    pixels = decode_rgb(data, read_header(data), buffer=buffer)
    if resize_short_side is None:
        return resize(pixels, image_size, image_size)
    pixels = _not_too_long(pixels)
    height, width = pixels.shape[:2]
    short = min(height, width)
    # Truncated, as in published evaluation.
    resized = resize(
        pixels, resize_short_side * height // short, resize_short_side * width // short
    )
    top = round((resized.shape[1] - image_size) / 2)
    left = round((resized.shape[2] - image_size) / 2)
    return resized[:, top : top + image_size, left : left + image_size]


def resize(
    pixels: PixelArray, height: int, width: int, resize_filter: Filter = "bicubic"
) -> torch.Tensor:
    """Resize uint8 [H, W, 3] to uint8 [3, height, width], antialiased."""
    # [H, W, 3] seen as channels-last [1, 3, H, W]: torch has a fast uint8 path for that layout,
    # but only without gaps between the rows.
    image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    if image.shape[2:] == (height, width):
        return image[0]
    image = image.contiguous(memory_format=torch.channels_last)
    return F.interpolate(
        image, size=(height, width), mode=resize_filter, antialias=True, align_corners=False
    )[0]


def _not_too_long(pixels: PixelArray) -> PixelArray:
    """Without the ends of a strip: a row of 65,500 pixels would be resized to gigabytes."""
    height, width = pixels.shape[:2]
    most = _LONGEST_STRIP * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return pixels[top : height - top, left : width - left]


def _decode_factor(crop_side: int, image_size: int) -> int:
    # Twice the target remains: whole pixels of the reduced image then place the box to within a
    # quarter of a pixel of the result.
    return next((f for f in (8, 4, 2) if crop_side >= 2 * f * image_size), 1)


def _scaled(box: Box, factor: int, rows: int, columns: int) -> Box:
    """The box in an image reduced by ``factor`` that has ``rows`` and ``columns`` whole pixels."""
    top, left = round(box.top / factor), round(box.left / factor)
    # The last row and column may hold padding from beyond the image: they are not used.
    bottom = min(rows, round((box.top + box.height) / factor))
    right = min(columns, round((box.left + box.width) / factor))
    return Box(top, left, bottom - top, right - left)


class _Uniform:
    """Draws from a counter: splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""

    def __init__(self, seed: int):
        self._state = seed & _MASK

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._next()

    def below(self, limit: int) -> int:
        return int(self._next() * limit)

    def _next(self) -> float:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((self._state ^ (self._state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((mixed ^ (mixed >> 31)) >> 11) * 2.0**-53
