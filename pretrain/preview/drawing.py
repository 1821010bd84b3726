"""Draws a sheet: a grid of images with their labels, as one PNG. Imports no torch.

Images are drawn pixel by pixel, enlarged or reduced by a whole number where they are too small to
write under or too large to look at together. The same sheet gives the same bytes.
"""

import io
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pretrain.preview.sheet import Group, Panel, Pixels, Sheet

COLUMNS = 8
"""Images in a row, unless something else is asked for."""

_LEAST_SIDE = 176
_GREATEST_SIDE = 256
_GAP = 14
_MARGIN = 16
_BAR = 5
_TITLE, _TEXT, _LABEL, _SMALL = 18, 13, 14, 11
_LEADING = 1.3
_DRAWS_LINES = 2
_PAPER, _INK, _SOFT, _RULE = "#ffffff", "#1b1f24", "#5a636e", "#d5dae0"
# Of the first label, the second, and what label smoothing gives to all classes.
_SHARES = ("#0b63c5", "#d9730d", "#d5dae0")

Font = ImageFont.FreeTypeFont


class Box(NamedTuple):
    """Where something lies on the picture, pixels; right and bottom are outside of it."""

    left: int
    top: int
    right: int
    bottom: int


class Place(NamedTuple):
    """Where one panel lies.

    Attributes:
        panel: what is drawn there.
        image: place of the image itself.
        text: of what is written under it.
        crop: of the crop above it, where there is one.
    """

    panel: Panel
    image: Box
    text: Box
    crop: Box | None


def png_of(sheet: Sheet, columns: int = COLUMNS) -> bytes:
    """Draw a sheet: the bytes of a PNG file."""
    file = io.BytesIO()
    draw(sheet, columns).save(file, format="PNG", compress_level=4)
    return file.getvalue()


def draw(sheet: Sheet, columns: int = COLUMNS) -> Image.Image:
    """Draw a sheet."""
    layout = _Layout(sheet, columns)
    image = Image.new("RGB", (layout.width, layout.height), _PAPER)
    canvas = ImageDraw.Draw(image)
    for line in layout.lines:
        canvas.text((_MARGIN, line.top), line.text, fill=line.colour, font=_font(*line.font))
    for place in layout.places:
        image.paste(_scaled(place.panel.pixels), place.image[:2])
        if place.crop is not None and place.panel.crop is not None:
            image.paste(_scaled(place.panel.crop), place.crop[:2])
        _write_under(canvas, place)
    return image


def places(sheet: Sheet, columns: int = COLUMNS) -> list[Place]:
    """Where the panels of a sheet are drawn, in its order."""
    return _Layout(sheet, columns).places


def drawn_size(side: int) -> tuple[int, int]:
    """Return by how much images of a side are enlarged, and by how much reduced.

    Example:
        >>> drawn_size(32), drawn_size(224), drawn_size(384)
        ((6, 1), (1, 1), (1, 2))
    """
    return max(1, -(-_LEAST_SIDE // side)), max(1, -(-side // _GREATEST_SIDE))


def fit(text: str, font: Font, width: int) -> str:
    """Return as much of a text as fits into a width, with an ellipsis where that is not all."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, font: Font, width: int, most: int) -> list[str]:
    """Break a text between words into lines of a width; the last of ``most`` takes what fits."""
    lines: list[str] = []
    rest = text.split()
    while rest and len(lines) < most - 1:
        count = 1
        while count < len(rest) and font.getlength(" ".join(rest[: count + 1])) <= width:
            count += 1
        lines.append(fit(" ".join(rest[:count]), font, width))
        rest = rest[count:]
    return lines + ([fit(" ".join(rest), font, width)] if rest else [])


class _Line(NamedTuple):
    top: int
    text: str
    font: tuple[int, bool]
    colour: str


class _Layout:
    """Where everything goes: lines of text over rows of panels, from top to bottom."""

    def __init__(self, sheet: Sheet, columns: int):
        panels = list(sheet.panels)
        columns = min(columns, max(len(group.panels) for group in sheet.groups))
        self._side = _scaled(panels[0].pixels).width
        self._crops = panels[0].crop is not None
        self.lines: list[_Line] = []
        self.places: list[Place] = []
        least = _MARGIN * 2 + 4 * _LEAST_SIDE
        self.width = max(least, _MARGIN * 2 + columns * (self._side + _GAP) - _GAP)
        self._top = _MARGIN
        self._write(sheet.title, (_TITLE, True), _INK)
        for note in sheet.notes:
            self._write(note, (_TEXT, False), _SOFT)
        for group in sheet.groups:
            self._add_group(group, columns)
        self.height = self._top + _MARGIN - _GAP

    def _write(self, text: str, font: tuple[int, bool], colour: str) -> None:
        for line in wrap(text, _font(*font), self.width - 2 * _MARGIN, most=9):
            self.lines.append(_Line(self._top, line, font, colour))
            self._top += _line_height(font[0])

    def _add_group(self, group: Group, columns: int) -> None:
        self._top += _GAP // 2
        self._write(group.heading, (_LABEL, True), _INK)
        self._top += _GAP // 2
        text_height = _text_height(group.panels, self._side)
        for first in range(0, len(group.panels), columns):
            for column, panel in enumerate(group.panels[first : first + columns]):
                self.places.append(self._place(panel, column, text_height))
            self._top = self.places[-1].text.bottom + _GAP

    def _place(self, panel: Panel, column: int, text_height: int) -> Place:
        left = _MARGIN + column * (self._side + _GAP)
        right, top, crop = left + self._side, self._top, None
        if self._crops:
            crop = Box(left, top, right, top + self._side)
            top = crop.bottom + 2
        image = Box(left, top, right, top + self._side)
        text = Box(left, image.bottom, right, image.bottom + text_height)
        return Place(panel, image, text, crop)


def _text_height(panels: Sequence[Panel], width: int) -> int:
    """Room for what the panel with most to say has under it."""
    labels = max(len(panel.labels) for panel in panels)
    small = max(len(_small_lines(panel, width)) for panel in panels)
    return _BAR + 4 + labels * _line_height(_LABEL) + small * _line_height(_SMALL)


def _small_lines(panel: Panel, width: int) -> list[str]:
    font = _font(_SMALL, False)
    texts = [_small_text(str(panel.sample_id), panel.draws)]
    if panel.partner_id is not None:
        texts.append(_small_text(f"+ {panel.partner_id}", panel.partner_draws))
    return [line for text in texts for line in wrap(text, font, width, _DRAWS_LINES)]


def _small_text(sample: str, draws: Sequence[str]) -> str:
    return f"{sample}: {', '.join(draws)}" if draws else sample


def _write_under(canvas: ImageDraw.ImageDraw, place: Place) -> None:
    panel, (left, top, right, _) = place.panel, place.text
    if panel.labels:
        for start, end, colour in _shares(panel, left, right):
            canvas.rectangle((start, top, end - 1, top + _BAR - 1), fill=colour)
    top += _BAR + 4
    for label, colour in zip(panel.labels, _SHARES, strict=False):
        canvas.rectangle((left, top + 3, left + 8, top + 11), fill=colour)
        font = _font(_LABEL, False)
        text = fit(f"{percent(label.weight_fraction)}  {label.name}", font, right - left - 14)
        canvas.text((left + 14, top), text, fill=_INK, font=font)
        top += _line_height(_LABEL)
    for line in _small_lines(panel, right - left):
        canvas.text((left, top), line, fill=_SOFT, font=_font(_SMALL, False))
        top += _line_height(_SMALL)


def percent(fraction: float) -> str:
    """Write a weight: whole per cent, with one decimal where little or nearly all is meant."""
    return f"{fraction:.0%}" if 0.1 <= fraction <= 0.9 else f"{fraction:.1%}"


def _shares(panel: Panel, left: int, right: int) -> Iterator[tuple[int, int, str]]:
    """Parts of the bar under an image: one for each label, and what is left for all classes."""
    start, done = left, 0.0
    for label, colour in zip(panel.labels, _SHARES, strict=False):
        done += label.weight_fraction
        end = left + round((right - left) * min(1.0, done))
        if end > start:
            yield start, end, colour
        start = end
    if start < right:
        yield start, right, _SHARES[-1]


def _scaled(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels)
    times, divisor = drawn_size(max(image.size))
    if times > 1:
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    return image.reduce(divisor) if divisor > 1 else image


def _line_height(size: int) -> int:
    return round(size * _LEADING)


@cache
def _font(size: int, bold: bool) -> Font:
    """DejaVu Sans, which matplotlib brings, so that it is the same on every machine."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("matplotlib, whose fonts are used, is not installed")
    fonts = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    file = fonts / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    # Without raqm, which is there on some machines and not on others.
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)
