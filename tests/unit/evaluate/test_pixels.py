"""What the model sees in evaluation is what published evaluation shows it."""

import io

import numpy as np
import pytest
from PIL import Image

from pretrain.data.crop import eval_image

SIZES = [(375, 500), (500, 333), (240, 321), (683, 1024), (200, 150), (224, 224), (257, 1000)]
"""Height and width: as ImageNet has them, larger, smaller than the crop, long."""

MEAN_DIFFERENCE = 0.3
"""Of 255 levels."""


def photograph(height: int, width: int) -> bytes:
    """A JPEG with edges and fine grain, which tell one filter from another."""
    rng = np.random.default_rng(height * width)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.NEAREST), dtype=np.int16)
    pixels = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()


def published(data: bytes, image_size: int, resize: int | None) -> np.ndarray:
    """Torchvision's Resize and CenterCrop (or a squash) as documented, with Pillow alone."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if resize is None:
        return np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    short, long = sorted(image.size)
    longer = int(resize * long / short)
    upright = image.width <= image.height
    size = (resize, longer) if upright else (longer, resize)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left = round((image.width - image_size) / 2.0)
    top = round((image.height - image_size) / 2.0)
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("image_size", "resize"), [(224, 256), (256, 292), (384, None)])
def test_pixels_are_pillows_bicubic(height, width, image_size, resize):
    data = photograph(height, width)
    ours = eval_image(data, image_size, resize).permute(1, 2, 0).numpy().astype(int)
    difference = np.abs(ours - published(data, image_size, resize))
    assert np.median(difference) <= 1
    # Where one side grows and the other shrinks, which comes first decides what is clipped.
    assert np.quantile(difference, 0.999) <= 2
    assert difference.mean() < MEAN_DIFFERENCE


def test_another_place_of_the_crop_would_show():
    """The comparison can fail: one pixel aside, most pixels differ by more than one level."""
    data = photograph(375, 500)
    ours = eval_image(data, 224, 256).permute(1, 2, 0).numpy().astype(int)
    assert np.median(np.abs(ours[:, 1:] - published(data, 224, 256)[:, :-1])) > 1


def test_another_filter_would_show():
    data = photograph(683, 1024)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    bilinear = np.asarray(image.resize((384, 384), Image.Resampling.BILINEAR))
    ours = eval_image(data, 384, None).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - bilinear).mean() > 2 * MEAN_DIFFERENCE
