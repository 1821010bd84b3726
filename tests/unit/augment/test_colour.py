"""Colour operations on the images where they are easily wrong. `test_randaugment` has the rest."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pretrain.augment import colour

NONE = torch.zeros(1, 1, dtype=torch.float64)


def as_image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("operation", ["autocontrast", "equalize"])
def test_histograms_with_few_values_or_few_pixels(operation):
    ours = {"autocontrast": colour.auto_contrast, "equalize": colour.equalize}[operation]
    random = np.random.default_rng(5)
    for pixels in (1, 2, 3, 200, 255, 256, 257, 509, 512, 700):
        for values in (1, 2, 3, 17, 256):
            palette = random.integers(0, 256, (3, values))
            picture = np.stack([random.choice(row, (1, pixels)) for row in palette])
            picture = torch.from_numpy(picture.astype(np.uint8))
            expected = as_tensor(getattr(ImageOps, operation)(as_image(picture)))
            assert torch.equal(ours(picture[None], NONE)[0], expected), (pixels, values)


def test_posterize_keeps_the_highest_bits():
    image = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    for bits in range(9):
        kept = colour.posterize(image, torch.tensor([[float(bits)]], dtype=torch.float64))
        assert kept.unique().tolist() == list(range(0, 256, 2 ** (8 - bits)))


def test_solarize_thresholds_reach_both_ends():
    image = torch.arange(256, dtype=torch.uint8).expand(2, 3, 1, 256)
    result = colour.solarize(image, torch.tensor([[0.0], [256.0]], dtype=torch.float64))
    assert torch.equal(result[0], 255 - image[0])
    assert torch.equal(result[1], image[1])


def test_arguments_are_per_image():
    image = torch.full((3, 3, 4, 5), 100, dtype=torch.uint8)
    factors = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)
    assert colour.brighten(image, factors)[:, 0, 0, 0].tolist() == [50, 100, 255]


def test_operations_leave_their_input_alone():
    image = torch.randint(0, 256, (2, 3, 9, 8), dtype=torch.uint8)
    before = image.clone()
    arguments = torch.full((2, 1), 1.5, dtype=torch.float64)
    for operation in (
        colour.auto_contrast,
        colour.equalize,
        colour.invert,
        colour.posterize,
        colour.solarize,
        colour.solarize_add,
        colour.saturate,
        colour.adjust_contrast,
        colour.brighten,
        colour.sharpen,
    ):
        operation(image, arguments)
        assert torch.equal(image, before), operation.__name__
