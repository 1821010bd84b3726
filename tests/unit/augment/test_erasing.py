"""Random erasing against timm's procedure, written out sample by sample."""

import math

import pytest
import torch

from pretrain.augment.draws import Stream, draw_uniform
from pretrain.augment.erasing import draw_boxes, erase

SEEDS = torch.arange(40_000) * 13 + 5


def box_of(seed: int, probability: float, height: int, width: int) -> tuple[int, ...] | None:
    """One sample's box (top, left, height, width) with the draws in timm's order of decisions."""
    key = torch.tensor([seed])

    def draw(stream: Stream, index: int = 0) -> float:
        return draw_uniform(key, stream, index).item()

    if draw(Stream.ERASE) >= probability:
        return None
    for attempt in range(10):
        area = (0.02 + (1 / 3 - 0.02) * draw(Stream.ERASE_AREA, attempt)) * height * width
        low, high = math.log(0.3), math.log(1 / 0.3)
        aspect = math.exp(low + (high - low) * draw(Stream.ERASE_ASPECT, attempt))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w < width and h < height:
            top = int(draw(Stream.ERASE_TOP) * (height - h + 1))
            return top, int(draw(Stream.ERASE_LEFT) * (width - w + 1)), h, w
    return None


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 45), (7, 80), (2, 2), (1, 1)])
def test_boxes_are_those_of_the_written_out_procedure(height, width):
    seeds = SEEDS[:300]
    boxes = draw_boxes(seeds, 0.7, height, width)
    columns = [boxes.sample, boxes.top, boxes.left, boxes.height, boxes.width]
    found = {sample: tuple(box) for sample, *box in torch.stack(columns, dim=1).tolist()}
    expected = {index: box_of(int(seed), 0.7, height, width) for index, seed in enumerate(seeds)}
    assert found == {index: box for index, box in expected.items() if box is not None}


def test_shares_and_shapes_have_the_stated_distributions():
    boxes = draw_boxes(SEEDS, 0.25, 224, 224)
    count = len(boxes.sample)
    assert abs(count / len(SEEDS) - 0.25) < 0.01
    area = (boxes.height * boxes.width).double() / 224**2
    assert area.min() > 0.019 and area.max() < 0.337  # whole pixels
    assert abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.005
    logarithm = (boxes.height.double() / boxes.width).log()
    assert logarithm.abs().max() < math.log(1 / 0.3) + 0.05
    assert abs(logarithm.mean()) < 0.03
    assert abs(logarithm.std() - 2 * math.log(1 / 0.3) / math.sqrt(12)) < 0.02
    centre = (boxes.left + boxes.width / 2) / 224
    assert abs(centre.mean() - 0.5) < 0.01
    assert bool((boxes.top + boxes.height <= 224).all() and (boxes.left + boxes.width <= 224).all())


def test_box_becomes_noise_and_nothing_else_changes():
    before = torch.full((400, 3, 40, 56), 9.0)
    seeds = SEEDS[:400]
    after = erase(before.clone(), seeds, 0.25)
    boxes = draw_boxes(seeds, 0.25, 40, 56)
    assert len(boxes.sample) > 50
    inside = torch.zeros(400, 1, 40, 56, dtype=torch.bool)
    for sample, top, left, height, width in zip(
        boxes.sample, boxes.top, boxes.left, boxes.height, boxes.width, strict=True
    ):
        inside[sample, :, top : top + height, left : left + width] = True
    inside = inside.expand_as(after)
    assert torch.equal(after[~inside], before[~inside])
    noise = after[inside]
    assert len(noise) > 50_000
    assert abs(noise.mean()) < 4 / math.sqrt(len(noise))
    assert abs(noise.std() - 1) < 4 / math.sqrt(len(noise))
    assert len(noise.unique()) > 0.98 * len(noise)  # own draws per pixel, channel and sample


@pytest.mark.parametrize("size", [1, 2, 3])
def test_images_too_small_for_a_box_pass_through(size):
    images = torch.zeros(50, 3, size, size)
    assert erase(images, SEEDS[:50], 1.0).isfinite().all()


def test_probability_zero_and_one():
    images = torch.full((200, 3, 32, 32), 9.0)
    assert torch.equal(erase(images.clone(), SEEDS[:200], 0.0), images)
    changed = (erase(images.clone(), SEEDS[:200], 1.0) != 9.0).flatten(1).any(dim=1)
    assert changed.all()
