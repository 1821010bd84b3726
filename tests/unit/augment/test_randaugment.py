"""RandAugment: every operation against Pillow, and the draws against timm's semantics."""

import math

import numpy as np
import pytest
import torch
from pictures import make_pictures
from PIL import Image, ImageEnhance, ImageOps

from pretrain.augment.policy import RandAugmentPolicy, parse_policy
from pretrain.augment.randaugment import OPERATION_COUNT, RandAugment, increasing_operations

FILL = (124, 116, 104)
OPERATIONS = increasing_operations(torch.tensor(FILL, dtype=torch.uint8))
GEOMETRIC = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
SIZES = [(61, 47), (33, 64), (97, 131), (5, 3), (1, 1), (17, 1)]
SEEDS = torch.arange(150_000) * 31 + 7


def pillow_result(name: str, image: Image.Image, level: float, sign: float) -> Image.Image:
    """Do what timm does with Pillow; ``level`` as clipped, ``sign`` -1 where timm negates."""
    width, height = image.size
    factor = max(0.1, 1.0 + sign * (level / 10.0 * 0.9))
    shear = sign * (level / 10.0 * 0.3)
    shift_fraction = sign * (level / 10.0 * 0.45)
    bicubic = Image.Resampling.BICUBIC

    def affine(*matrix: float) -> Image.Image:
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, resample=bicubic, fillcolor=FILL
        )

    def posterize() -> Image.Image:
        bits = 4 - int(level / 10.0 * 4)
        # Recent Pillow refuses 0 bits; before, they gave black.
        return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)

    def solarize_add() -> Image.Image:
        addend = min(128, int(level / 10.0 * 110))
        return image.point([min(255, v + addend) if v < 128 else v for v in range(256)] * 3)

    return {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Rotate": lambda: image.rotate(sign * (level / 10.0 * 30.0), bicubic, fillcolor=FILL),
        "PosterizeIncreasing": posterize,
        "SolarizeIncreasing": lambda: ImageOps.solarize(image, 256 - int(level / 10.0 * 256)),
        "SolarizeAdd": solarize_add,
        "ColorIncreasing": lambda: ImageEnhance.Color(image).enhance(factor),
        "ContrastIncreasing": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "BrightnessIncreasing": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "SharpnessIncreasing": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "ShearX": lambda: affine(1, shear, 0, 0, 1, 0),
        "ShearY": lambda: affine(1, 0, 0, shear, 1, 0),
        "TranslateXRel": lambda: affine(1, 0, shift_fraction * width, 0, 1, 0),
        "TranslateYRel": lambda: affine(1, 0, 0, 0, 1, shift_fraction * height),
    }[name]()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_operation_matches_pillow(operation):
    """Colour operations exactly; geometric ones within one level, on few pixels."""
    random = np.random.default_rng(3)
    pixels, differing = 0, 0
    for height, width in SIZES:
        images = make_pictures(16, height, width, seed=height)
        levels = torch.from_numpy(random.uniform(0, 10, 16))
        levels[:6] = torch.tensor([0.0, 10.0, 10.0, 9.0, 9.5, 5.0])
        signs = torch.from_numpy(random.choice([-1.0, 1.0], 16))
        signs[:6] = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])
        result = operation.apply(images, operation.arguments(levels, signs, height, width))
        assert result.dtype == torch.uint8
        for index in range(16):
            picture = Image.fromarray(images[index].permute(1, 2, 0).numpy().copy())
            theirs = pillow_result(
                operation.name, picture, levels[index].item(), signs[index].item()
            )
            expected = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).int()
            difference = (result[index].int() - expected).abs()
            assert difference.max() <= (operation.name in GEOMETRIC)
            pixels += difference.numel()
            differing += int((difference > 0).sum())
    assert differing <= 0.001 * pixels


def test_there_are_fifteen_operations():
    assert len(OPERATIONS) == OPERATION_COUNT == len({operation.name for operation in OPERATIONS})


def test_operations_are_drawn_uniformly_and_independently():
    augment = RandAugment(RandAugmentPolicy(probability=1.0), FILL)
    first, second = augment.draw(SEEDS, 0)[0], augment.draw(SEEDS, 1)[0]
    counts = torch.bincount(first * OPERATION_COUNT + second, minlength=OPERATION_COUNT**2)
    expected = len(SEEDS) / OPERATION_COUNT**2
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert 150 < chi_squared < 310  # 224 degrees of freedom: all pairs, also twice the same


def test_probability_level_and_sign_follow_the_policy():
    augment = RandAugment(parse_policy("rand-m9-mstd0.5-inc1"), FILL)
    chosen, levels, signs = augment.draw(SEEDS, 0)
    applied = chosen >= 0
    tolerance = 4 / math.sqrt(len(SEEDS))
    assert abs(applied.double().mean() - 0.5) < tolerance
    assert abs(signs.mean()) < 2 * tolerance
    assert signs.unique().tolist() == [-1, 1]
    at_top = 0.5 * math.erfc(2 / math.sqrt(2))  # levels are cut two deviations above their mean
    overshoot = 0.5 * (math.exp(-2) / math.sqrt(2 * math.pi) - 2 * at_top)
    assert abs((levels == 10).double().mean() - at_top) < tolerance
    assert abs(levels.mean() - (9 - overshoot)) < tolerance
    inner = levels[levels < 9] - 9
    assert abs(inner.square().mean().sqrt() - 0.5) < 2 * tolerance
    table = torch.stack([applied.double(), levels, signs, chosen.clamp(min=0).double()])
    correlation = torch.corrcoef(table) - torch.eye(4)
    correlation[0, 3] = correlation[3, 0] = 0  # the operation is only known where applied
    assert correlation.abs().max() < 2 * tolerance


def test_layers_are_independent():
    augment = RandAugment(parse_policy("rand-m5-mstd0.5-inc1"), FILL)
    columns = []
    for layer in (0, 1):
        chosen, levels, signs = augment.draw(SEEDS, layer)
        columns += [(chosen >= 0).double(), levels, signs]
    correlation = torch.corrcoef(torch.stack(columns)) - torch.eye(6)
    assert correlation.abs().max() < 5 / math.sqrt(len(SEEDS))


def test_layers_and_probability_are_obeyed():
    images = make_pictures(8, 20, 20)
    seeds = torch.arange(8)
    never = RandAugment(RandAugmentPolicy(probability=0.0), FILL)
    assert torch.equal(never(images.clone(), seeds), images)
    once = RandAugment(RandAugmentPolicy(layers=1, probability=1.0), FILL)
    chosen, levels, signs = once.draw(seeds, 0)
    result = once(images.clone(), seeds)
    for index in range(8):
        one = slice(index, index + 1)
        operation = OPERATIONS[int(chosen[index])]
        arguments = operation.arguments(levels[one], signs[one], 20, 20)
        assert torch.equal(result[one], operation.apply(images[one], arguments))


def test_second_layer_works_on_the_first_ones_result():
    images = make_pictures(64, 20, 20)
    seeds = torch.arange(64)
    twice = RandAugment(RandAugmentPolicy(layers=2, probability=1.0), FILL)
    once = RandAugment(RandAugmentPolicy(layers=1, probability=1.0), FILL)
    middle = once(images.clone(), seeds)
    chosen, levels, signs = twice.draw(seeds, 1)
    result = twice(images.clone(), seeds)
    for index in range(64):
        one = slice(index, index + 1)
        operation = OPERATIONS[int(chosen[index])]
        arguments = operation.arguments(levels[one], signs[one], 20, 20)
        assert torch.equal(result[one], operation.apply(middle[one], arguments))
