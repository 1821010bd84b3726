"""The picture of a fixed set with a fixed seed, against one that somebody looked at.

Words and numbers must be equal, weights to 1e-6. Of each image only the mean difference must be
small, since another version of a decoder may round otherwise and RandAugment enlarges that; what
would be a fault differs by more, which is tested too.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from painted import COLUMNS, GOLDEN, GOLDEN_VALUES, sheet_of_config, values_of
from PIL import Image

from pretrain.augment import pipeline
from pretrain.augment.mixing import mix_groups
from pretrain.preview import compose
from pretrain.preview.drawing import draw, places
from pretrain.preview.sheet import Sheet

LEVELS = 2.0
"""Largest mean difference of an image, of 255."""


@pytest.fixture(scope="module")
def sheet(painted) -> Sheet:
    return sheet_of_config(painted)


def differences(sheet: Sheet) -> set[str]:
    """What is not as in the golden picture: the names of values, and ``pixels``."""
    found = _differing(values_of(sheet), json.loads(GOLDEN_VALUES.read_text()), "")
    ours, golden = draw(sheet, COLUMNS), Image.open(GOLDEN)
    if ours.size != golden.size:
        return found | {"size"}
    for place in places(sheet, COLUMNS):
        a, b = (np.asarray(image.crop(place.image), np.float32) for image in (ours, golden))
        if np.abs(a - b).mean() > LEVELS:
            found.add("pixels")
    return found


def _differing(ours, golden, name) -> set[str]:
    if isinstance(ours, dict):
        assert ours.keys() == golden.keys()
        return set().union(*(_differing(ours[key], golden[key], key) for key in ours))
    if isinstance(ours, list):
        if len(ours) != len(golden):
            return {name}
        pairs = zip(ours, golden, strict=True)
        return set().union(*(_differing(a, b, name) for a, b in pairs))
    if isinstance(ours, float):
        golden = pytest.approx(golden, abs=1e-6)
    return set() if ours == golden else {name}


def with_panels(sheet: Sheet, change) -> Sheet:
    groups = [replace(group, panels=tuple(map(change, group.panels))) for group in sheet.groups]
    return replace(sheet, groups=tuple(groups))


def test_the_picture_is_the_golden_one(sheet):
    assert differences(sheet) == set()


def test_both_labels_and_their_weights_are_those_of_the_target(sheet):
    """By hand: 0.1 is spread over six classes, and 0.9 goes by the share of each image."""
    for group, kept in zip(sheet.groups, (1.0, 0.657, 0.809), strict=True):
        for panel in group.panels:
            weights = [label.weight_fraction for label in panel.labels]
            shares = [kept, 1 - kept] if kept < 1 else [1.0]
            if len(weights) < len(shares):  # both images are of one class
                shares = [1.0]
            assert weights == pytest.approx([0.9 * share + 0.1 / 6 for share in shares], abs=1e-3)


def swapped(panel):
    return replace(panel, labels=panel.labels[::-1])


def heavier(panel):
    first, *rest = panel.labels
    return replace(
        panel, labels=(replace(first, weight_fraction=first.weight_fraction + 0.01), *rest)
    )


def with_another_partner(panel):
    return replace(panel, partner_id=None if panel.partner_id is None else panel.sample_id)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (swapped, {"id", "name", "weight_fraction"}),
        (heavier, {"weight_fraction"}),
        (with_another_partner, {"partner_id"}),
        (lambda panel: replace(panel, pixels=panel.pixels[:, :, ::-1].copy()), {"pixels"}),
        (lambda panel: replace(panel, pixels=panel.pixels[:, ::-1].copy()), {"pixels"}),
    ],
)
def test_a_wrong_picture_does_not_pass(sheet, change, seen):
    assert differences(with_panels(sheet, change)) == seen


def test_labels_under_another_image_do_not_pass(sheet):
    labels = [panel.labels for panel in sheet.panels]
    shifted = iter(labels[1:] + labels[:1])
    moved = with_panels(sheet, lambda panel: replace(panel, labels=next(shifted)))
    assert {"id", "name"} <= differences(moved)


def half_as_much(images, mixes):
    return mix_groups(
        images, [replace(mix, kept_fraction=(1 + mix.kept_fraction) / 2) for mix in mixes]
    )


@pytest.mark.parametrize("mixing", [lambda images, mixes: images, half_as_much])
def test_other_mixing_does_not_pass(painted, monkeypatch, mixing):
    monkeypatch.setattr(pipeline, "mix_groups", mixing)
    assert differences(sheet_of_config(painted)) == {"pixels"}


@pytest.mark.parametrize(
    ("mean", "std"), [([0.5] * 3, (0.229, 0.224, 0.225)), ((0.485, 0.456, 0.406), [0.26] * 3)]
)
def test_wrong_unnormalising_does_not_pass(painted, monkeypatch, mean, std):
    right = compose.unnormalise
    monkeypatch.setattr(compose, "unnormalise", lambda images, *_: right(images, mean, std))
    assert differences(sheet_of_config(painted)) == {"pixels"}
