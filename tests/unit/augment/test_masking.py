"""What is hidden of an image: how much, where, and what that depends on."""

import pytest
import torch
from pictures import make_pictures

from pretrain.augment.masking import MaskedAugment, draw_masks
from pretrain.augment.pipeline import Augment
from pretrain.config.masking import MaskingConfig
from pretrain.config.schema import AugmentConfig

SEEDS = torch.arange(4000) * 7919 + 3
LIGHT = AugmentConfig(
    randaugment=None, erase_probability=0.0, mix_probability=0.0, label_smoothing=0.0
)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "ratio", "squares", "hidden"),
    [
        (192, 32, 0.6, 6, 22),  # the published setting: 21.6 rounded up
        (224, 32, 0.6, 7, 30),
        (192, 64, 0.5, 3, 5),
        (192, 16, 0.25, 12, 36),
        (64, 32, 0.1, 2, 1),
    ],
)
def test_exactly_so_many_squares_are_hidden(image_size, patch_size, ratio, squares, hidden):
    masking = MaskingConfig(patch_size=patch_size, ratio=ratio)
    assert masking.squares_per_side(image_size) == squares
    assert masking.hidden_squares(image_size) == hidden
    masks = draw_masks(SEEDS[:500], squares, hidden)
    assert (masks.shape, masks.dtype) == ((500, squares, squares), torch.bool)
    assert set(masks.sum(dim=(1, 2)).tolist()) == {hidden}


def test_a_mask_depends_on_its_seed_only():
    whole = draw_masks(SEEDS[:96], 6, 22)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw_masks(SEEDS[:96][order], 6, 22), whole[order])
    for start, size in ((0, 1), (5, 2), (10, 7), (40, 33)):
        part = slice(start, start + size)
        assert torch.equal(draw_masks(SEEDS[part], 6, 22), whole[part])
    assert len({tuple(mask.flatten().tolist()) for mask in whole}) == 96


def test_every_square_and_every_pair_is_hidden_equally_often():
    masks = draw_masks(SEEDS, 3, 5).flatten(1).double()
    together = masks.T @ masks / len(masks)
    expected = torch.full((9, 9), 5 / 9 * 4 / 8, dtype=torch.float64)
    expected.fill_diagonal_(5 / 9)
    deviation = (expected * (1 - expected) / len(masks)).sqrt()
    assert ((together - expected) / deviation).abs().max() < 4.5


def test_masks_do_not_follow_the_flip():
    """Another stream than any other draw from the same seed."""
    seeds = torch.arange(8) * 104729
    images = make_pictures(8, 64, 64)
    for probability in (0.0, 1.0):
        settings = LIGHT.model_copy(update={"flip_probability": probability})
        augment = MaskedAugment(
            Augment(settings, num_classes=3, seed=0), MaskingConfig(patch_size=16)
        )
        (_, hidden), _ = augment(images, torch.zeros(8), seeds, step=0, first_group=0)
        assert torch.equal(hidden, draw_masks(seeds, 4, 10))


def test_the_model_sees_what_it_is_compared_with_and_no_label():
    images, seeds = make_pictures(6, 64, 64), SEEDS[:6]
    plain = Augment(LIGHT, num_classes=3, seed=0)
    augment = MaskedAugment(plain, MaskingConfig(patch_size=16))
    inputs, targets = augment(images, torch.full((6,), -1), seeds, step=3, first_group=9)
    assert torch.equal(inputs[0], plain.augment_samples(images, seeds))
    assert inputs[0] is targets[0]
    assert inputs[1] is targets[1]
    again = augment(images[2:4], torch.zeros(2), seeds[2:4], step=8, first_group=0)[0]
    assert torch.equal(again[0], inputs[0][2:4])
    assert torch.equal(again[1], inputs[1][2:4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_are_the_same_on_a_gpu():
    assert torch.equal(draw_masks(SEEDS.cuda(), 6, 22).cpu(), draw_masks(SEEDS, 6, 22))
