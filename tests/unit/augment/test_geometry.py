"""Affine resampling against Pillow and by hand."""

import numpy as np
import pytest
import torch
from pictures import make_pictures
from PIL import Image

from pretrain.augment.geometry import transform_affine

FILL = torch.tensor([10, 20, 30], dtype=torch.uint8)


def matrix(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_identity_is_exact():
    images = make_pictures(3, 15, 22)
    rows = matrix(1, 0, 0, 0, 1, 0).repeat(3, 1)
    for axis in ("x", "y", "both"):
        assert torch.equal(transform_affine(images, rows, FILL, axis), images)


def test_whole_translation_shifts_and_fills():
    images = make_pictures(1, 15, 22)
    moved = transform_affine(images, matrix(1, 0, 4, 0, 1, 0), FILL, "x")
    assert torch.equal(moved[..., :-4], images[..., 4:])
    assert torch.equal(moved[..., -4:], FILL.view(1, 3, 1, 1).expand(1, 3, 15, 4))
    moved = transform_affine(images, matrix(1, 0, 0, 0, 1, -3), FILL, "y")
    assert torch.equal(moved[..., 3:, :], images[..., :-3, :])


def test_half_pixel_uses_cubic_weights_of_coefficient_minus_one():
    row = torch.tensor([0, 0, 0, 100, 0, 0, 0], dtype=torch.uint8).expand(1, 3, 1, 7)
    moved = transform_affine(row, matrix(1, 0, 0.5, 0, 1, 0), FILL, "x")
    assert moved[0, 0, 0].tolist() == [0, 0, 62, 62, 0, 0, 10]  # 62.5 and -12.5, truncated; fill


def test_flat_images_stay_flat():
    images = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, 3, 9, 9)
    rows = matrix(0.9, 0.3, 0.21, -0.3, 0.9, 1.7).repeat(256, 1)
    moved = transform_affine(images.contiguous(), rows, FILL, "both")
    inside = transform_affine(images.contiguous(), rows, 255 - FILL, "both") == moved
    assert torch.equal(moved[inside], images[inside])
    assert inside.float().mean() > 0.5


@pytest.mark.parametrize(("height", "width"), [(41, 58), (3, 5), (1, 1), (2, 9)])
def test_random_matrices_match_pillow(height, width):
    random = np.random.default_rng(height)
    images = make_pictures(12, height, width, seed=width)
    rows = random.normal([1, 0, 0, 0, 1, 0], [0.3, 0.3, 4, 0.3, 0.3, 4], (12, 6))
    ours = transform_affine(images, torch.from_numpy(rows), FILL, "both")
    for index in range(12):
        picture = Image.fromarray(images[index].permute(1, 2, 0).numpy().copy())
        theirs = picture.transform(
            picture.size,
            Image.Transform.AFFINE,
            tuple(rows[index]),
            resample=Image.Resampling.BICUBIC,
            fillcolor=tuple(FILL.tolist()),
        )
        difference = ours[index].int() - torch.from_numpy(np.array(theirs)).permute(2, 0, 1).int()
        assert difference.abs().max() <= 1
        assert (difference != 0).float().mean() < 0.002
