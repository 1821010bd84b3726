"""Where things are drawn: text under its own image, whole, and pixels as they are."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import ImageChops

from pretrain.preview.drawing import (
    _font,
    draw,
    drawn_size,
    fit,
    percent,
    places,
    png_of,
    wrap,
)
from pretrain.preview.sheet import Group, Label, Panel, Sheet

LONG = "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"


def make_sheet(side: int = 48, images: int = 5, crops: bool = False) -> Sheet:
    random = np.random.default_rng(0)

    def panel(number: int) -> Panel:
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        labels = (Label("n1", "one", 0.7), Label("n2", "two", 0.25))
        crop = pixels[::-1].copy() if crops else None
        return Panel(pixels, labels, number, number + 100, ("flip", "Rotate"), ("erase",), crop)

    panels = tuple(panel(number) for number in range(images))
    groups = (Group("first", panels[:3]), Group("second", panels[3:]))
    return Sheet("title", ("A note.",), groups)


def with_panel(sheet: Sheet, number: int, **changes) -> Sheet:
    groups, seen = [], 0
    for group in sheet.groups:
        panels = list(group.panels)
        if seen <= number < seen + len(panels):
            panels[number - seen] = replace(panels[number - seen], **changes)
        seen += len(panels)
        groups.append(replace(group, panels=tuple(panels)))
    return replace(sheet, groups=tuple(groups))


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": (Label("n1", "another", 0.7), Label("n2", "two", 0.25))},
        {"labels": (Label("n1", LONG, 0.7), Label("n2", LONG, 0.25))},
        {"labels": (Label("n1", "one", 0.4), Label("n2", "two", 0.25))},
        {"sample_id": 14_197_121, "partner_id": 12_345_678},
        {"draws": ("flip", "Posterize")},
        {"partner_draws": ("Invert",)},
    ],
)
@pytest.mark.parametrize("number", [0, 2, 4])
def test_what_is_said_of_an_image_stands_under_it_and_nowhere_else(changes, number):
    sheet = make_sheet()
    before, after = draw(sheet, 2), draw(with_panel(sheet, number, **changes), 2)
    changed = ImageChops.difference(before, after).getbbox()
    box = places(sheet, 2)[number].text
    assert changed is not None
    assert box.left <= changed[0] <= changed[2] <= box.right
    assert box.top <= changed[1] <= changed[3] <= box.bottom


@pytest.mark.parametrize("side", [32, 48, 100, 176, 224])
def test_pixels_are_drawn_as_they_are(side):
    sheet = make_sheet(side, crops=True)
    times, divisor = drawn_size(side)
    assert divisor == 1
    image = np.asarray(draw(sheet, 3))
    for place in places(sheet, 3):
        for box, pixels in ((place.image, place.panel.pixels), (place.crop, place.panel.crop)):
            drawn = image[box.top : box.bottom, box.left : box.right]
            assert (drawn == pixels.repeat(times, 0).repeat(times, 1)).all()


def test_nothing_overlaps_and_nothing_leaves_the_picture():
    sheet = make_sheet(crops=True)
    image = draw(sheet, 2)
    boxes = [box for place in places(sheet, 2) for box in (place.image, place.text, place.crop)]
    for index, box in enumerate(boxes):
        assert 0 <= box.left < box.right <= image.width
        assert 0 <= box.top < box.bottom <= image.height
        for other in boxes[:index]:
            apart = box.left >= other.right or other.left >= box.right
            assert apart or box.top >= other.bottom or other.top >= box.bottom


def test_large_images_are_reduced_to_means():
    sheet = make_sheet(384, images=4)
    place = places(sheet)[0]
    drawn = np.asarray(draw(sheet))[place.image.top, place.image.left].astype(int)
    mean = place.panel.pixels[:2, :2].reshape(4, 3).mean(axis=0)
    assert np.abs(drawn - mean).max() <= 1


def test_the_same_sheet_gives_the_same_bytes():
    assert png_of(make_sheet()) == png_of(make_sheet())


def test_text_is_cut_to_its_width_and_says_so():
    font = _font(14, False)
    for width in (30, 80, 150):
        cut = fit(LONG, font, width)
        assert font.getlength(cut) <= width
        assert cut.endswith("…")
        assert LONG.startswith(cut[:-1])
    assert fit("brick", font, 150) == "brick"
    lines = wrap(LONG, font, 150, 2)
    assert len(lines) == 2
    assert all(font.getlength(line) <= 150 for line in lines)
    assert wrap("a few words", font, 150, 2) == ["a few words"]
    assert wrap("", font, 150, 2) == []


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.9083, "90.8%"), (0.61, "61%"), (0.0031, "0.3%"), (1.0, "100.0%")]
)
def test_weights_are_written_as_per_cent(fraction, text):
    assert percent(fraction) == text
