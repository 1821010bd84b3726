"""Operations on the values of pixels, matching Pillow's ImageOps and ImageEnhance.

Every function takes ``images``: uint8 [n, 3, H, W], RGB, and ``arguments``: float64 [n, 1], one per
image, on the same device; it returns new uint8 [n, 3, H, W]. Nothing waits for the device.
"""

import torch
from torch import Tensor

_LEVELS = 256  # values of a uint8


def auto_contrast(images: Tensor, arguments: Tensor) -> Tensor:
    """Stretch each channel so that its darkest value becomes 0 and its brightest 255.

    Equal to ``ImageOps.autocontrast``. ``arguments`` are not used.
    """
    flat = images.flatten(2)
    low = flat.amin(dim=2, keepdim=True)
    high = flat.amax(dim=2, keepdim=True)
    # Double precision and this order of operations are Pillow's, since the result is truncated;
    # a plain number over a tensor would be a reciprocal and a product.
    spread = high.double() - low
    scale = torch.full_like(spread, 255.0) / spread
    table = torch.arange(_LEVELS, dtype=torch.float64, device=images.device) * scale
    table = (table - low * scale).clamp_(0, 255)
    identity = torch.arange(_LEVELS, dtype=torch.uint8, device=images.device)
    return _look_up(images, torch.where(high > low, table.to(torch.uint8), identity))


def equalize(images: Tensor, arguments: Tensor) -> Tensor:
    """Spread each channel's values evenly over 0 to 255.

    Equal to ``ImageOps.equalize``. ``arguments`` are not used.
    """
    flat = images.flatten(2)
    counts = _histogram(flat)  # [n, 3, 256]
    last = flat.amax(dim=2, keepdim=True).long()
    step = (flat.shape[2] - counts.gather(2, last)) // 255
    below = counts.cumsum(dim=2) - counts
    table = (below + step // 2) // step.clamp(min=1)
    identity = torch.arange(_LEVELS, device=images.device)
    return _look_up(images, torch.where(step > 0, table, identity).clamp_(max=255).to(torch.uint8))


def invert(images: Tensor, arguments: Tensor) -> Tensor:
    """Turn each value v into 255 - v. ``arguments`` are not used."""
    return 255 - images


def posterize(images: Tensor, arguments: Tensor) -> Tensor:
    """Keep the highest bits of each value: ``arguments`` of them, 0 (black) to 8."""
    bits = arguments.int()
    dropped = torch.full_like(bits, 255) >> bits
    return images & _per_image((255 - dropped).to(torch.uint8))


def solarize(images: Tensor, arguments: Tensor) -> Tensor:
    """Invert the values that are not below the threshold in ``arguments``, 0 to 256."""
    return torch.where(images < _per_image(arguments.short()), images, 255 - images)


def solarize_add(images: Tensor, arguments: Tensor) -> Tensor:
    """Add ``arguments``, 0 to 127, to the values below 128."""
    return images + (images < 128) * _per_image(arguments.to(torch.uint8))


def saturate(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with the grey image: factor 0 is grey, 1 the image (``ImageEnhance.Color``)."""
    return _blend(_luma(images), images, arguments)


def adjust_contrast(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with the mean luma: factor 0 is flat, 1 the image (``ImageEnhance.Contrast``)."""
    total = _luma(images).sum(dim=(1, 2, 3), dtype=torch.int64)
    pixels = images.shape[2] * images.shape[3]
    mean = (2 * total + pixels) // (2 * pixels)
    return _blend(_per_image(mean), images, arguments)


def brighten(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with black: factor 0 is black, 1 the image (``ImageEnhance.Brightness``)."""
    return _blend(torch.zeros_like(images[:, :1]), images, arguments)


def sharpen(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with the smoothed image: factor 0 is smooth, 1 the image (``ImageEnhance.Sharpness``).

    The smoothing weights are 1 around 5, over 13; the outermost pixels stay as they are.
    """
    values = images.float()
    smooth = values.clone()
    if min(images.shape[2:]) > 2:
        rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
        total.add_(values[:, :, 1:-1, 1:-1], alpha=4.0)
        # A total is whole and 13 is odd, so no quotient is near a tie of the rounding.
        smooth[:, :, 1:-1, 1:-1] = total.div_(13.0).add_(0.5).floor_()
    return _blend(smooth, images, arguments)


def _blend(zero: Tensor, one: Tensor, factors: Tensor) -> Tensor:
    """Go from ``zero`` (factor 0) through ``one`` (factor 1), in Pillow's float32, truncated."""
    zero = zero.float()
    mixed = (one.float() - zero).mul_(_per_image(factors.float())).add_(zero)
    return mixed.clamp_(0.0, 255.0).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """Grey value of each pixel, int32 [n, 1, H, W], 0–255: ITU-R 601-2 as Pillow rounds it."""
    red, green, blue = images.int().split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _per_image(values: Tensor) -> Tensor:
    """Shape one value per image to broadcast: [n, 1] or [n] → [n, 1, 1, 1]."""
    return values.reshape(-1, 1, 1, 1)


def _histogram(flat: Tensor) -> Tensor:
    """Count the values of each channel: uint8 [n, 3, H·W] → int64 [n, 3, 256]."""
    channels = flat.shape[0] * flat.shape[1]
    starts = torch.arange(channels, dtype=torch.int64, device=flat.device) * _LEVELS
    bins = (flat.reshape(channels, -1) + starts[:, None]).flatten()
    counts = torch.zeros(channels * _LEVELS, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(0, bins, torch.ones_like(bins))
    return counts.view(flat.shape[0], flat.shape[1], _LEVELS)


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace each value by its entry: ``tables`` uint8 [n, 3, 256]."""
    return tables.gather(2, images.flatten(2).long()).view_as(images)
