"""Paints photograph-like pictures of twelve kinds of things, each from its own random stream.

A kind is a shape, a texture and a family of colours together; place, size, turn, light, shadow,
background, clutter, occlusion, blur and noise are drawn anew for every picture. Object coordinates
are (u, v): the object fills about the unit disc, u to the right and v downwards.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Plane = NDArray[np.floating]
"""float32 [height, width]."""
PixelArray = NDArray[np.uint8]
Color = tuple[float, float, float]

SIDES = (72, 200)
"""Least and greatest side of a picture, pixels."""


@dataclass(frozen=True)
class Kind:
    """What makes a class.

    Attributes:
        wnid: id in the form of a WordNet id; those from n90000000 on are nobody's.
        name: for people.
        shape: (u, v) → signed distance, roughly; negative inside.
        texture: (u, v) → 0 to 1, how much of the second colour shows.
        colors: first and second colour, RGB from 0 to 1.
    """

    wnid: str
    name: str
    shape: Callable[[Plane, Plane], Plane]
    texture: Callable[[Plane, Plane], Plane]
    colors: tuple[Color, Color]


def _radius(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v)


def _angle(u: Plane, v: Plane) -> Plane:
    return np.arctan2(v, u)


def _step(value: Plane, sharpness: float = 8.0) -> Plane:
    """0 where the value is negative, 1 where positive, smooth between."""
    return np.clip(value * sharpness + 0.5, 0.0, 1.0)


def _disc(u: Plane, v: Plane) -> Plane:
    return _radius(u, v) - 1


def _oblong(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.58)


def _square(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _pillow(u: Plane, v: Plane) -> Plane:
    return (np.abs(u) ** 4 + np.abs(v / 0.8) ** 4) ** np.float32(0.25) - 0.95


def _lens(u: Plane, v: Plane) -> Plane:
    return _radius(u, np.abs(v) + 0.75) - 1.25


def _flower(u: Plane, v: Plane) -> Plane:
    return _radius(u, v) - (0.74 + 0.26 * np.cos(8 * _angle(u, v)))


def _star(u: Plane, v: Plane) -> Plane:
    return _radius(u, v) - (0.62 + 0.4 * np.cos(5 * _angle(v, u)))


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(_radius(u, v) - 0.7) - 0.3


def _crescent(u: Plane, v: Plane) -> Plane:
    return np.maximum(_radius(u, v) - 1, 0.85 - _radius(u - 0.5, v))


def _fish(u: Plane, v: Plane) -> Plane:
    body = _radius((u + 0.2) / 0.8, v / 0.52) - 1
    tail = np.maximum(np.abs(v) - 0.9 * (u - 0.35), u - 1.0)
    return np.minimum(body, tail)


def _dots(u: Plane, v: Plane) -> Plane:
    spots = np.cos(7.0 * u + 1.6) * np.cos(7.0 * v) - 0.35
    return np.maximum(_step(spots, 4), _step(0.06 - np.abs(u), 20))


def _bricks(u: Plane, v: Plane) -> Plane:
    row = np.floor(v * 4.3)
    across = np.abs((u * 2.2 + 0.5 * (row % 2)) % 1 - 0.5)
    along = np.abs((v * 4.3) % 1 - 0.5)
    return np.maximum(_step(across - 0.44, 12), _step(along - 0.4, 8))


def _stripes(u: Plane, v: Plane) -> Plane:
    return _step(np.sin(9.0 * u + 1.2 * np.sin(2.5 * v)), 2.5)


def _veins(u: Plane, v: Plane) -> Plane:
    side = np.abs(((u - 0.7 * np.abs(v)) * 4) % 1 - 0.5)
    return np.maximum(_step(0.05 - np.abs(v), 20), _step(0.12 - side, 6) * 0.8)


def _heart(u: Plane, v: Plane) -> Plane:
    petals = 0.25 * _step(np.cos(8 * _angle(u, v)) - 0.9, 4)
    return np.maximum(_step(0.34 - _radius(u, v), 10), petals)


def _speckles(u: Plane, v: Plane) -> Plane:
    waves = np.sin(17 * u + 3 * np.sin(5 * v)) * np.sin(19 * v + 2 * np.sin(6 * u))
    return _step(waves - 0.45, 3)


def _sectors(u: Plane, v: Plane) -> Plane:
    return _step(np.sin(4 * _angle(u, v)), 4)


def _checks(u: Plane, v: Plane) -> Plane:
    return _step(np.sin(7.4 * u) * np.sin(7.4 * v), 4)


def _segments(u: Plane, v: Plane) -> Plane:
    return _step(np.sin(4 * _angle(u, v) + 0.8), 5)


def _mottle(u: Plane, v: Plane) -> Plane:
    return 0.6 * _step(np.sin(6 * u + 2 * v) * np.sin(5 * v - 3 * u) - 0.3, 2)


def _scales(u: Plane, v: Plane) -> Plane:
    arcs = np.sin(13 * u + 2.2 * np.abs(np.sin(8 * v)))
    eye = _step(0.09 - _radius(u + 0.68, v + 0.1), 16)
    return np.maximum(_step(arcs - 0.2, 2), eye)


def _rings(u: Plane, v: Plane) -> Plane:
    return _step(np.sin(12.5 * _radius(u, v) + 1.2), 3)


_BLACK, _WHITE = (0.07, 0.06, 0.07), (0.93, 0.93, 0.9)
KINDS = (
    Kind("n90000104", "ladybird", _disc, _dots, ((0.82, 0.1, 0.07), _BLACK)),
    Kind("n90000231", "brick", _oblong, _bricks, ((0.6, 0.28, 0.2), (0.72, 0.7, 0.66))),
    Kind("n90000318", "striped cushion", _pillow, _stripes, (_WHITE, _BLACK)),
    Kind("n90000452", "leaf", _lens, _veins, ((0.16, 0.5, 0.13), (0.62, 0.78, 0.4))),
    Kind("n90000577", "daisy", _flower, _heart, ((0.95, 0.93, 0.88), (0.95, 0.7, 0.05))),
    Kind("n90000640", "starfish", _star, _speckles, ((0.93, 0.48, 0.12), (0.98, 0.8, 0.55))),
    Kind("n90000795", "beach ball", _disc, _sectors, ((0.1, 0.3, 0.85), (0.97, 0.85, 0.1))),
    Kind("n90000866", "chessboard", _square, _checks, ((0.3, 0.18, 0.1), (0.9, 0.8, 0.6))),
    Kind("n90000913", "lifebuoy", _ring, _segments, ((0.9, 0.22, 0.1), _WHITE)),
    Kind("n90001027", "banana", _crescent, _mottle, ((0.96, 0.83, 0.16), (0.5, 0.36, 0.1))),
    Kind("n90001158", "fish", _fish, _scales, ((0.1, 0.5, 0.62), (0.62, 0.85, 0.88))),
    Kind("n90001289", "dartboard", _disc, _rings, ((0.48, 0.14, 0.55), (0.95, 0.72, 0.85))),
)
"""The classes, sorted by id."""

_CLUTTER = (_disc, _oblong, _square, _lens, _crescent, _ring)


def paint(kind: Kind, random: np.random.Generator) -> PixelArray:
    """Paint one picture of a kind: uint8 [height, width, 3], sides within `SIDES`."""
    scene = _Scene(random)
    for _ in range(random.integers(2, 7)):
        scene.add_clutter(random, largest=0.45)
    u, v = scene.place(random, 0.6, 0.95)
    scene.add(_shadow(kind.shape, u, v, random), _planes((0.05, 0.05, 0.08)))
    first, second = (_planes(_vary(color, random)) for color in kind.colors)
    share = kind.texture(u, v)
    scene.add(scene.mask(kind.shape(u, v), u), first * (1 - share) + second * share)
    if random.random() < 0.35:
        scene.add_clutter(random, largest=0.3)
    return _photograph(scene.pixels, random)


class _Scene:
    """A picture in the making: float32 [3, height, width], 0 to 1."""

    def __init__(self, random: np.random.Generator):
        height, width = (int(side) for side in random.integers(SIDES[0], SIDES[1] + 1, 2))
        # Camera formats: never more than 3:2.
        height, width = max(height, width * 2 // 3), max(width, height * 2 // 3)
        rows = np.arange(height, dtype=np.float32)[:, None] + 0.5
        columns = np.arange(width, dtype=np.float32)[None, :] + 0.5
        half = min(height, width) / 2
        self._y = (rows - height / 2) / half
        self._x = (columns - width / 2) / half
        self._half = half
        self.pixels = _background(height, width, random)

    def place(
        self, random: np.random.Generator, smallest: float, largest: float
    ) -> tuple[Plane, Plane]:
        """Object coordinates of something of that size, somewhere, turned somehow."""
        size = random.uniform(smallest, largest)
        turn = random.normal(0, 0.35)
        stretch = random.uniform(0.88, 1.14)
        room_x = max(0.1, float(-self._x.min()) - size * 0.9)
        room_y = max(0.1, float(-self._y.min()) - size * 0.9)
        x = self._x - np.float32(random.uniform(-room_x, room_x))
        y = self._y - np.float32(random.uniform(-room_y, room_y))
        if random.random() < 0.5:
            x = -x
        cosine, sine = np.cos(turn) / size, np.sin(turn) / size
        u = (x * np.float32(cosine) + y * np.float32(sine)) * np.float32(stretch)
        v = (y * np.float32(cosine) - x * np.float32(sine)) / np.float32(stretch)
        return u, v

    def mask(self, distance: Plane, u: Plane) -> Plane:
        """Coverage, 0 to 1, with an edge about one pixel wide."""
        pixel = float(np.abs(np.diff(u[:2, :2], axis=1)).max()) + 0.5 / self._half
        return np.clip(0.5 - distance / pixel, 0, 1)

    def add(self, coverage: Plane, color: NDArray[np.floating]) -> None:
        """Lay a colour, [3, 1, 1] or [3, height, width], over what is there."""
        self.pixels += coverage * (color - self.pixels)

    def add_clutter(self, random: np.random.Generator, largest: float) -> None:
        """Something plain that means nothing."""
        shape = _CLUTTER[random.integers(len(_CLUTTER))]
        u, v = self.place(random, 0.1, largest)
        color = random.uniform(0.1, 0.9, 3) * 0.6 + random.uniform(0.1, 0.4)
        self.add(self.mask(shape(u, v), u), _planes(color))


def _shadow(
    shape: Callable[[Plane, Plane], Plane], u: Plane, v: Plane, random: np.random.Generator
) -> Plane:
    right, down = random.uniform(-0.2, 0.2), random.uniform(0.05, 0.25)
    distance = shape(u - np.float32(right), v - np.float32(down))
    return np.float32(random.uniform(0.2, 0.6)) * np.clip(0.5 - 3 * distance, 0, 1)


def _vary(color: Color, random: np.random.Generator) -> NDArray[np.floating]:
    """A colour of the same family."""
    varied = np.asarray(color) * random.uniform(0.75, 1.15) + random.normal(0, 0.05, 3)
    return np.clip(varied, 0.02, 1).astype(np.float32)


def _background(height: int, width: int, random: np.random.Generator) -> NDArray[np.floating]:
    """Two muted colours in soft patches, sometimes with a horizon, and a grain."""
    colors = random.uniform(0.15, 0.85, (2, 3))
    grey = colors.mean(axis=1, keepdims=True)
    colors = (0.55 * colors + 0.45 * grey).astype(np.float32)
    patches = _smooth_noise(height, width, int(random.integers(2, 7)), random)
    if random.random() < 0.4:
        horizon = random.uniform(0.25, 0.75) * height
        below = _step((np.arange(height, dtype=np.float32)[:, None] - horizon) / height, 30)
        patches = 0.35 * patches + 0.65 * below
    grain = _smooth_noise(height, width, int(random.integers(12, 40)), random)
    ground = _planes(colors[0]) + patches * _planes(colors[1] - colors[0])
    return ground + np.float32(random.uniform(0.05, 0.3)) * (grain - np.float32(0.5))


def _smooth_noise(height: int, width: int, cells: int, random: np.random.Generator) -> Plane:
    """Noise between about 0 and 1 whose patches are a ``cells``-th of the picture."""
    coarse = Image.fromarray(random.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _photograph(pixels: NDArray[np.floating], random: np.random.Generator) -> PixelArray:
    """Light from one side, sometimes out of focus, with a sensor's noise."""
    height, width = pixels.shape[1:]
    direction = random.uniform(0, 2 * np.pi)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(np.sin(direction))
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.float32(np.cos(direction))
    light = random.uniform(0.75, 1.15) + np.float32(random.uniform(0, 0.35)) * (rows + columns)
    pixels = pixels * light * _planes(random.uniform(0.93, 1.07, 3))
    noise = random.standard_normal(pixels.shape, dtype=np.float32)
    noise *= np.float32(random.uniform(0.005, 0.04))
    if random.random() < 0.25:
        soft = Image.fromarray(_to_uint8(pixels))
        soft = soft.filter(ImageFilter.BoxBlur(random.uniform(0.5, 1.5)))
        pixels = np.asarray(soft, dtype=np.float32).transpose(2, 0, 1) / 255
    return _to_uint8(pixels + noise)


def _to_uint8(pixels: NDArray[np.floating]) -> PixelArray:
    """[3, height, width], 0 to 1, as uint8 [height, width, 3]."""
    levels = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def _planes(color: Color | NDArray[np.floating]) -> NDArray[np.floating]:
    """A colour as float32 [3, 1, 1], to spread over planes."""
    return np.asarray(color, dtype=np.float32)[:, None, None]
