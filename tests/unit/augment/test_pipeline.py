"""The whole augmentation: what it depends on, and what it does not."""

import pytest
import torch
from pictures import make_pictures

from pretrain.augment.draws import Stream, draw_uniform
from pretrain.augment.erasing import erase
from pretrain.augment.mixing import draw_mix, mix_groups, soft_targets
from pretrain.augment.pipeline import Augment, flip, normalize
from pretrain.config.schema import AugmentConfig
from pretrain.errors import ConfigError

PLAIN = AugmentConfig(
    flip_probability=0.0,
    randaugment=None,
    erase_probability=0.0,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
    label_smoothing=0.0,
)
SMALL_GROUPS = AugmentConfig(mix_group=16)
SEEDS = torch.arange(96) * 7919 + 3


def make(settings: AugmentConfig = SMALL_GROUPS, seed: int = 5) -> Augment:
    return Augment(settings, num_classes=10, seed=seed)


def test_pixels_before_mixing_depend_on_image_and_seed_only():
    images = make_pictures(96, 37, 50)
    settings = AugmentConfig(randaugment="rand-m9-mstd0.5-inc1-p0.9", erase_probability=0.6)
    augment = make(settings)
    whole = augment.augment_samples(images, SEEDS)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment.augment_samples(images[order], SEEDS[order]), whole[order])
    for start, size in ((0, 1), (1, 1), (5, 2), (10, 7), (40, 33)):
        part = slice(start, start + size)
        alone = make(settings, seed=77).augment_samples(images[part], SEEDS[part])
        assert torch.equal(alone, whole[part])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(augment.augment_samples(images, SEEDS), whole)
    finally:
        torch.set_num_threads(threads)


def test_micro_batch_split_and_rank_do_not_matter():
    images, labels = make_pictures(96, 24, 24), torch.arange(96) % 10
    augment = make()
    whole = augment(images, labels, SEEDS, step=9, first_group=0)
    for size in (16, 32, 48):
        parts = [
            make()(
                images[start : start + size],
                labels[start : start + size],
                SEEDS[start : start + size],
                step=9,
                first_group=start // 16,
            )
            for start in range(0, 96, size)
        ]
        for index in (0, 1):
            assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


def test_step_group_and_run_seed_change_the_mixing():
    images, labels = make_pictures(16, 24, 24), torch.arange(16) % 10
    results = [
        make(seed=seed)(images, labels, SEEDS[:16], step=step, first_group=group)[1]
        for seed, step, group in ((5, 0, 0), (5, 0, 1), (5, 1, 0), (6, 0, 0))
    ]
    for first in range(4):
        for second in range(first):
            assert not torch.equal(results[first], results[second])


def test_result_has_the_promised_form_and_input_is_left_alone():
    images, labels = make_pictures(32, 40, 40), torch.arange(32) % 10
    before = images.clone()
    result, targets = make()(images, labels, SEEDS[:32], step=0, first_group=0)
    assert result.shape == images.shape and result.dtype == torch.float32
    assert result.is_contiguous() and result.isfinite().all()
    assert targets.shape == (32, 10) and targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(32))
    assert torch.equal(images, before)


def test_steps_come_in_the_published_order():
    images, labels = make_pictures(32, 24, 24), torch.arange(32) % 10
    augment, seeds = make(), SEEDS[:32]
    assert augment.randaugment.fill.tolist() == [124, 116, 104]  # the mean colour
    expected = augment.randaugment(flip(images, seeds, 0.5), seeds)
    expected = erase(normalize(expected, PLAIN.mean, PLAIN.std), seeds, 0.25)
    assert torch.equal(augment.augment_samples(images, seeds), expected)
    mixes = [
        draw_mix(SMALL_GROUPS, seed=5, step=2, group=group, height=24, width=24) for group in (4, 5)
    ]
    result, targets = augment(images, labels, seeds, step=2, first_group=4)
    assert torch.equal(result, mix_groups(expected, mixes))
    smooth = soft_targets(labels, mixes, num_classes=10, label_smoothing=0.1)
    assert torch.equal(targets, smooth)


def test_everything_off_only_normalises():
    images, labels = make_pictures(6, 24, 24), torch.arange(6)
    result, targets = make(PLAIN)(images, labels, SEEDS[:6], step=0, first_group=0)
    assert torch.equal(result, normalize(images, PLAIN.mean, PLAIN.std))
    assert torch.equal(targets, torch.eye(10)[:6])


def test_normalize_shifts_and_scales():
    images = make_pictures(4, 9, 9)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    result = normalize(images, PLAIN.mean, PLAIN.std)
    torch.testing.assert_close(result, (images / 255 - mean) / std, rtol=1e-5, atol=1e-6)


def test_flip_mirrors_the_drawn_half():
    images = make_pictures(96, 8, 9)
    flipped = flip(images, SEEDS, 0.5)
    drawn = draw_uniform(SEEDS, Stream.FLIP) < 0.5
    assert 30 < drawn.sum() < 66
    assert torch.equal(flipped[drawn], images[drawn].flip(-1))
    assert torch.equal(flipped[~drawn], images[~drawn])
    assert torch.equal(flip(images, SEEDS, 0.0), images)
    assert torch.equal(flip(images, SEEDS, 1.0), images.flip(-1))
    many = draw_uniform(torch.arange(100_000), Stream.FLIP) < 0.5
    assert abs(many.double().mean() - 0.5) < 0.007


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match=r"augment\.randaugment: unknown part 'x1'"):
        make(AugmentConfig(randaugment="rand-x1-inc1"))
    images, labels = make_pictures(6, 8, 8), torch.arange(6)
    with pytest.raises(ConfigError, match="whole groups of 16, got 6"):
        make()(images, labels, SEEDS[:6], step=0, first_group=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_does_the_same_without_being_waited_for():
    images, labels = make_pictures(96, 64, 64), torch.arange(96) % 10
    expected, expected_targets = make()(images, labels, SEEDS, step=1, first_group=0)
    on_device, device_labels = images.cuda(), labels.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result, targets = make()(on_device, device_labels, SEEDS, step=1, first_group=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Interpolated values may truncate to the next level: one level is 1 / (255 · 0.224).
    difference = (result.cpu() - expected).abs()
    assert difference.max() < 0.02
    assert (difference > 1e-4).float().mean() < 1e-3
    torch.testing.assert_close(targets.cpu(), expected_targets)
