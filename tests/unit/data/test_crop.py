import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_shards import jpeg

from pretrain.data import crop
from pretrain.data.crop import Box, eval_image, random_resized_crop_box, resize, train_image
from pretrain.data.decode import decode_rgb, read_header

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
sides = st.integers(1, 600)
seeds = st.integers(0, 2**63 - 1)

# Of 255 levels. Both work in fixed point; torch rounds its weights to fewer bits.
MOST_DIFFERENCE, MEAN_DIFFERENCE = 2, 0.1


def a_picture(height: int, width: int) -> np.ndarray:
    data = jpeg(height * 1000 + width, height, width, quality=95)
    return decode_rgb(data, read_header(data))


@given(seeds, sides, sides)
def test_boxes_lie_inside_the_image(seed, height, width):
    box = random_resized_crop_box(seed, height, width, SCALE, RATIO)
    assert box.top >= 0
    assert box.left >= 0
    assert 1 <= box.height <= height - box.top
    assert 1 <= box.width <= width - box.left


@given(seeds, st.integers(50, 400), st.integers(50, 400))
def test_boxes_depend_on_the_seed_alone(seed, height, width):
    first = random_resized_crop_box(seed, height, width, SCALE, RATIO)
    assert random_resized_crop_box(seed, height, width, SCALE, RATIO) == first


def test_boxes_are_distributed_as_published():
    """Area uniform in the scale, logarithm of the ratio uniform, where tries rarely fail."""
    boxes = [random_resized_crop_box(s, 400, 400, (0.1, 0.5), RATIO) for s in range(4000)]
    areas = np.array([b.height * b.width for b in boxes]) / 160_000
    ratios = np.log([b.width / b.height for b in boxes])
    assert areas.min() > 0.095
    assert areas.max() < 0.505
    assert abs(areas.mean() - 0.3) < 0.01
    assert abs(areas.std() - 0.4 / 12**0.5) < 0.01
    assert abs(ratios.mean()) < 0.01
    assert abs(ratios.std() - 2 * np.log(4 / 3) / 12**0.5) < 0.01
    tops = np.array([b.top / (400 - b.height) for b in boxes])
    assert abs(tops.mean() - 0.5) < 0.02
    assert tops.min() == 0
    assert tops.max() == 1


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 1000, Box(0, 493, 10, 13)), (1000, 10, Box(493, 0, 13, 10)), (1, 1, Box(0, 0, 1, 1))],
)
def test_impossible_shapes_take_the_centre(height, width, box):
    assert random_resized_crop_box(1, height, width, (0.9, 1.0), RATIO) == box


@pytest.mark.parametrize(
    ("height", "width", "out_height", "out_width"),
    [(48, 40, 32, 32), (97, 131, 32, 32), (300, 200, 224, 224), (20, 31, 48, 48), (64, 200, 8, 8),
     (375, 500, 256, 341)],
)  # fmt: skip
def test_resizing_is_pillows(height, width, out_height, out_width):
    pixels = a_picture(height, width)
    ours = resize(pixels, out_height, out_width)
    assert ours.dtype == torch.uint8
    assert ours.shape == (3, out_height, out_width)
    reference = Image.fromarray(pixels).resize((out_width, out_height), Image.Resampling.BICUBIC)
    difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(reference))
    assert difference.max() <= MOST_DIFFERENCE
    assert difference.mean() <= MEAN_DIFFERENCE


def test_resizing_noise_is_pillows():
    """Sharp edges everywhere: overshoots must be clipped alike."""
    pixels = np.random.default_rng(0).integers(0, 2, (90, 70, 3), dtype=np.uint8) * 255
    ours = resize(pixels, 40, 45).permute(1, 2, 0).numpy().astype(int)
    reference = Image.fromarray(pixels).resize((45, 40), Image.Resampling.BICUBIC)
    assert np.abs(ours - np.asarray(reference)).max() <= MOST_DIFFERENCE


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_training_images_are_pillows_crops(seed, name):
    data = jpeg(seed, 180, 230)
    ours = train_image(data, seed, 160, SCALE, RATIO, resize_filter=name)
    box = random_resized_crop_box(seed, 180, 230, SCALE, RATIO)
    whole = Image.fromarray(decode_rgb(data, read_header(data)))
    cut = whole.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    reference = np.asarray(cut.resize((160, 160), Image.Resampling[name.upper()]))
    difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - reference)
    assert difference.max() <= MOST_DIFFERENCE


def test_large_crops_are_decoded_smaller_and_look_the_same(monkeypatch):
    factors = []

    def noting(data, header, factor=1, buffer=None):
        factors.append(factor)
        return decode_rgb(data, header, factor, buffer)

    data = jpeg(11, 801, 1203, quality=95)
    monkeypatch.setattr(crop, "decode_rgb", noting)
    for seed in range(6):
        scaled = train_image(data, seed, 32, (0.5, 1.0), RATIO)
        with monkeypatch.context() as patch:
            patch.setattr(crop, "_decode_factor", lambda *_: 1)
            whole = train_image(data, seed, 32, (0.5, 1.0), RATIO)
        assert np.abs(scaled.numpy().astype(int) - whole.numpy()).mean() < 4
    assert set(factors[::2]) == {8}
    assert set(factors[1::2]) == {1}


@pytest.mark.parametrize(("side", "factor"), [(127, 1), (128, 2), (255, 2), (256, 4), (512, 8)])
def test_scaled_decoding_leaves_twice_the_target(side, factor):
    assert crop._decode_factor(side, 32) == factor


@pytest.mark.parametrize(("height", "width"), [(90, 120), (120, 90), (64, 64), (20, 33)])
def test_evaluation_resizes_the_short_side_and_cuts_the_centre(height, width):
    data = jpeg(7, height, width)
    ours = eval_image(data, 48, 56)
    image = Image.fromarray(decode_rgb(data, read_header(data)))
    short = min(height, width)
    image = image.resize((56 * width // short, 56 * height // short), Image.Resampling.BICUBIC)
    left, top = round((image.width - 48) / 2), round((image.height - 48) / 2)
    reference = np.asarray(image.crop((left, top, left + 48, top + 48)))
    difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - reference)
    assert difference.max() <= MOST_DIFFERENCE


def test_evaluation_squashes_where_asked():
    data = jpeg(7, 90, 120)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    reference = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC)).astype(int)
    ours = eval_image(data, 48, None).permute(1, 2, 0).numpy()
    assert np.abs(ours - reference).max() <= MOST_DIFFERENCE + 2
