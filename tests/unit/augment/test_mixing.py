"""Mixup, CutMix and soft targets against timm's batch mode."""

import pytest
import torch

from pretrain.augment.mixing import Mix, check_groups, draw_mix, mix_groups, soft_targets
from pretrain.config.schema import AugmentConfig
from pretrain.errors import ConfigError


def draw_many(settings: AugmentConfig, count: int = 3000, size: int = 224) -> list[Mix]:
    return [
        draw_mix(settings, seed=3, step=index // 4, group=index % 4, height=size, width=size)
        for index in range(count)
    ]


def timm_target(labels, lam, classes, smoothing):
    """Mixed target of one group as published: on and off values, then lambda between both."""
    off = smoothing / classes
    on = 1.0 - smoothing + off
    own = torch.full((len(labels), classes), off).scatter_(1, labels[:, None], on)
    other = torch.full((len(labels), classes), off).scatter_(1, labels.flip(0)[:, None], on)
    return own * lam + other * (1.0 - lam)


def test_mixup_blends_mirror_images_inside_each_group():
    images = torch.randn(12, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    mixed = mix_groups(images.clone(), [Mix(0.3), Mix(1.0), Mix(0.9)])
    for group, lam in enumerate((0.3, 1.0, 0.9)):
        part = images[group * 4 : group * 4 + 4]
        expected = part * lam + part.flip(0) * (1.0 - lam)
        assert torch.equal(mixed[group * 4 : group * 4 + 4], expected)


def test_cutmix_pastes_the_partners_box():
    images = torch.randn(4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    mixed = mix_groups(images.clone(), [Mix(0.5, box=(1, 4, 2, 7))])
    expected = images.clone()
    expected[:, :, 1:4, 2:7] = images.flip(0)[:, :, 1:4, 2:7]
    assert torch.equal(mixed, expected)


@pytest.mark.parametrize("size", [(224, 224), (32, 45), (7, 3)])
def test_lambda_equals_the_area_left(size):
    settings = AugmentConfig(mixup_alpha=0.0)
    height, width = size
    seen = set()
    for step in range(200):
        mix = draw_mix(settings, seed=1, step=step, group=0, height=height, width=width)
        identity = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, height, width).clone()
        mixed = mix_groups(identity, [mix])
        assert (mixed[0] == 0).sum().item() == round(mix.kept_fraction * height * width)
        target = soft_targets(torch.tensor([0, 1]), [mix], num_classes=2, label_smoothing=0.0)
        assert target[0, 0].item() == pytest.approx((mixed[0] == 0).float().mean().item(), abs=1e-6)
        seen.add(mix.box)
    assert len(seen) > (100 if size == (224, 224) else 5)


def test_box_area_and_place_before_clipping():
    areas, centres = [], []
    for mix in draw_many(AugmentConfig(mixup_alpha=0.0)):
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= 224 and 0 <= left <= right <= 224
        if top > 0 and bottom < 224 and left > 0 and right < 224:
            assert abs((bottom - top) - (right - left)) == 0  # square images give square boxes
        areas.append((bottom - top) * (right - left) / 224**2)
        centres.append((top + bottom) / 448)
    # The mean over a uniform area a of the clipped box: E[(r - r²/4)²] with r = √a, 0 to 1.
    assert sum(areas) / len(areas) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.015)
    assert sum(centres) / len(centres) == pytest.approx(0.5, abs=0.015)


def test_modes_and_lambda_follow_the_settings():
    mixes = draw_many(AugmentConfig())
    assert sum(mix.box is not None for mix in mixes) / len(mixes) == pytest.approx(0.5, abs=0.03)
    lambdas = torch.tensor([mix.kept_fraction for mix in mixes if mix.box is None])
    assert lambdas.mean().item() == pytest.approx(0.5, abs=0.03)
    assert lambdas.var().item() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.006)  # Beta's
    rare = draw_many(AugmentConfig(mix_switch_probability=0.1, mix_probability=0.3))
    mixed = [mix for mix in rare if mix.kept_fraction < 1]
    assert len(mixed) / len(rare) == pytest.approx(0.3, abs=0.03)
    assert sum(mix.box is not None for mix in mixed) / len(mixed) == pytest.approx(0.1, abs=0.03)
    assert all(mix.box is None for mix in draw_many(AugmentConfig(cutmix_alpha=0.0), 100))
    off = AugmentConfig(mixup_alpha=0.0, cutmix_alpha=0.0)
    assert draw_many(off, 10) == [Mix(kept_fraction=1.0)] * 10


def test_draws_depend_on_seed_step_and_group():
    def draw(seed, step, group):
        settings = AugmentConfig()
        return draw_mix(settings, seed=seed, step=step, group=group, height=64, width=64)

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert (
        len({draw(seed, step, group) for seed in (0, 1) for step in (0, 1) for group in (0, 1)})
        == 8
    )


def test_the_sequence_of_draws_is_frozen():
    """A run resumed with another numpy must go on as before: these values may never change."""
    settings = AugmentConfig()
    first = draw_mix(settings, seed=0, step=0, group=1, height=64, width=64)
    second = draw_mix(settings, seed=0, step=1, group=1, height=64, width=64)
    assert first == Mix(kept_fraction=pytest.approx(0.8148166391250954, rel=1e-12))
    assert second == Mix(kept_fraction=0.7890625, box=(10, 42, 0, 27))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [2, 10, 21841])
def test_targets_are_those_of_timm(smoothing, classes):
    labels = torch.randint(0, classes, (12,), generator=torch.Generator().manual_seed(1))
    labels[0] = labels[5]  # a sample and its partner of one class
    mixes = [Mix(0.37), Mix(1.0)]
    targets = soft_targets(labels, mixes, num_classes=classes, label_smoothing=smoothing)
    expected = torch.cat(
        [
            timm_target(labels[:6], 0.37, classes, smoothing),
            timm_target(labels[6:], 1.0, classes, smoothing),
        ]
    )
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets, expected, rtol=1e-6, atol=1e-7)
    assert (targets.double().sum(dim=1) - 1).abs().max() < 1e-6


def test_partial_groups_are_refused():
    assert check_groups(128, AugmentConfig(mix_group=64)) == 2
    assert check_groups(100, AugmentConfig(mix_probability=0.0)) == 1
    with pytest.raises(ConfigError, match="whole groups of 64, got 96 images"):
        check_groups(96, AugmentConfig(mix_group=64))
