"""A small picture of an image, for people to look at. No torch."""

import io

from PIL import Image

from pretrain.data.decode import decode_rgb, read_header

QUALITY = 85


def thumbnail(data: bytes, side: int) -> bytes:
    """A JPEG of the whole image, in proportion, no side longer than ``side`` pixels.

    A JPEG that is far larger is decoded at 1/2, 1/4 or 1/8; smaller images keep their size.

    Raises:
        ImageError: the file cannot be decoded.
    """
    header = read_header(data)
    longest = max(header.height, header.width)
    factor = max(factor for factor in (1, 2, 4, 8) if factor == 1 or longest >= side * factor)
    image = Image.fromarray(decode_rgb(data, header, factor))
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    written = io.BytesIO()
    image.save(written, "JPEG", quality=QUALITY)
    return written.getvalue()
