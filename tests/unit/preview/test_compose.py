"""What a picture says of a batch, and that looking changes nothing."""

import numpy as np
import pytest
import torch
from painted import sheet_of_config

from pretrain.augment.masking import draw_masks
from pretrain.augment.pipeline import normalize
from pretrain.data.manifest import read_manifest
from pretrain.preview.compose import HIDDEN_GREY, shown_rows, unnormalise
from pretrain.preview.remake import sheet_of_request
from pretrain.preview.request import request_of_config

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MASKED = (
    "masking={patch_size: 8, ratio: 0.6}", "data.eval_split=null", "augment.mix_probability=0",
    "augment.label_smoothing=0", "augment.erase_probability=0", "augment.randaugment=null",
)  # fmt: skip


def test_unnormalising_gives_every_value_back():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(unnormalise(normalize(values, MEAN, STD), MEAN, STD), values)
    noise = torch.tensor([-9.0, 9.0, torch.nan]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    assert unnormalise(noise, MEAN, STD)[0, :, 0].tolist() == [[0, 255, 0]] * 3


@pytest.mark.parametrize(
    ("count", "groups", "images", "rows"),
    [
        (8, 2, 5, [[0, 1, 2], [4, 5]]),
        (8, 2, 99, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (8, 4, 2, [[0], [2], [], []]),
        (6, 1, 6, [[0, 1, 2, 3, 4, 5]]),
    ],
)
def test_every_group_is_shown_alike(count, groups, images, rows):
    assert shown_rows(count, groups, images) == rows


def test_fewer_images_than_groups_and_more_than_there_are(painted):
    few, all_of_them = (sheet_of_config(painted, images=images) for images in (2, 100))
    assert [len(group.panels) for group in few.groups] == [1, 1]
    assert len(list(all_of_them.panels)) == 24
    assert "(24 images of micro-batch 0 of 1)" in all_of_them.title


def test_how_batches_are_divided_changes_no_image(painted):
    """As at three times as many ranks: the second micro-batch is the second group."""
    whole = sheet_of_config(painted, images=24)
    third = sheet_of_config(painted, "batch.micro_size_max=8", images=24, number=1)
    assert third.groups[0].heading == whole.groups[1].heading
    for ours, theirs in zip(third.groups[0].panels, whole.groups[1].panels, strict=True):
        assert (ours.pixels == theirs.pixels).all()
        assert (ours.sample_id, ours.labels) == (theirs.sample_id, theirs.labels)


def test_partners_are_each_others(painted):
    sheet = sheet_of_config(painted, images=24)
    for group in sheet.groups[1:]:
        partners = {panel.sample_id: panel.partner_id for panel in group.panels}
        assert all(partners[partners[sample]] == sample for sample in partners)
        ids = [panel.sample_id for panel in group.panels]
        assert [panel.partner_id for panel in group.panels] == ids[::-1]
        draws = [panel.draws for panel in group.panels]
        assert [panel.partner_draws for panel in group.panels] == draws[::-1]


def test_labels_are_the_classes_of_the_images(painted):
    """Without mixing the heaviest class is the one of the folder that the sample came from."""
    sheet = sheet_of_config(painted, "augment.mix_probability=0", images=24)
    manifest = read_manifest(painted.parent / "shards")
    records = np.fromfile(
        (manifest.root / manifest.split("train").shards[0].file).with_suffix(".idx"),
        dtype=[("skipped", "V12"), ("label", "<i4"), ("rest", "V8")],
    )
    for panel in sheet.panels:
        (label,) = panel.labels
        assert label.id == manifest.classes[records["label"][panel.sample_id]]
    assert sheet.groups[0].heading == "no mixing in this config"


def test_draws_are_what_was_done(painted):
    rare = ("augment.mix_probability=0", "augment.randaugment=rand-m9-n1-inc1")
    panels = list(sheet_with_crops(painted, *rare).panels)
    untouched = [panel for panel in panels if not panel.draws]
    assert 0 < len(untouched) < len(panels)
    for panel in panels:
        if panel.draws in ((), ("flip",), ("Invert",)):
            expected = {"flip": panel.crop[:, ::-1], "Invert": 255 - panel.crop}
            assert (panel.pixels == expected.get("".join(panel.draws), panel.crop)).all()
        else:
            assert (panel.pixels != panel.crop).any()


def sheet_with_crops(config, *overrides):
    return sheet_of_request(request_of_config(str(config), overrides), images=24, crops=True)


def test_what_is_hidden_is_grey_and_nothing_else(painted):
    sheet = sheet_with_crops(painted, *MASKED, "augment.flip_probability=0")
    (group,) = sheet.groups
    assert group.heading == "masked: 10 of 16 squares of 8 x 8 pixels are hidden"
    assert "Labels are not looked at" in sheet.notes[0]
    for panel in group.panels:
        assert (panel.labels, panel.partner_id, panel.crop is None) == ((), None, False)
        squares = panel.pixels.reshape(4, 8, 4, 8, 3).swapaxes(1, 2)
        crops = panel.crop.reshape(4, 8, 4, 8, 3).swapaxes(1, 2)
        grey = (squares == HIDDEN_GREY).all(axis=(2, 3, 4))
        assert grey.sum() == 10
        assert (squares[~grey] == crops[~grey]).all()
    assert draw_masks(torch.zeros(1, dtype=torch.int64), 4, 10).sum() == 10
