"""Small pictures: whole, in proportion, never larger than they were."""

import io

import numpy as np
import pytest
from PIL import Image

from pretrain.data.decode import ImageError
from pretrain.data.thumbnail import thumbnail


def image_file(size: tuple[int, int], form: str, mode: str = "RGB") -> bytes:
    """Red on the left, blue on the right."""
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "form", "mode", "expected"),
    [
        ((500, 375), "JPEG", "RGB", (128, 96)),
        ((375, 1500), "JPEG", "RGB", (32, 128)),
        ((40, 30), "JPEG", "RGB", (40, 30)),
        ((1030, 4), "PNG", "RGB", (128, 1)),
        ((200, 200), "PNG", "RGBA", (128, 128)),
        ((257, 129), "JPEG", "CMYK", (128, 64)),
    ],
)
def test_it_is_a_small_jpeg_of_the_whole_image(size, form, mode, expected):
    made = thumbnail(image_file(size, form, mode), 128)
    with Image.open(io.BytesIO(made)) as picture:
        assert (picture.format, picture.mode) == ("JPEG", "RGB")
        assert picture.size == pytest.approx(expected, abs=1)
        left, right = (picture.resize((4, 1)).getpixel((x, 0)) for x in (0, 3))
    assert left[0] > 150 > 60 > left[2]
    assert right[2] > 150 > 60 > right[0]


def test_what_is_no_image_is_refused():
    with pytest.raises(ImageError):
        thumbnail(b"no image", 128)
