"""Image files to pixels, without torch: JPEG through libjpeg-turbo, everything else through Pillow.

JPEGs are decoded strictly (a warning of the library counts as failure); what the strict decoder
refuses, such as CMYK, gets a second chance with Pillow, whose verdict published training follows:
truncated files are refused by both. Rotation tags (EXIF) are ignored, as in published training.
"""

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

PixelArray = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
"""Larger images are refused from their header, before memory is taken for them."""

MAX_SCANNED_PIXELS = 2_000_000_000
"""Scans of a JPEG times its pixels: a few kilobytes of empty scans would decode for hours."""

_JPEG_START = b"\xff\xd8\xff"
_JPEG_SCAN = b"\xff\xda"
# Inside a scan, bytes 255 are followed by 0 or a restart mark; anything else is the next marker.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_END = 0xD9
_LEAST_SCAN_BYTES = 10
# Naming the formats keeps Pillow from guessing: some of its readers start external programs.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp"}
_EXTENSIONS |= {"BMP": "bmp", "TIFF": "tif"}

_MOST_KEPT_BYTES = 64 * 2**20


class DecodeBuffer:
    """Memory that is decoded into again and again: the kernel need not hand out pages each time.

    One for each process that decodes; what lies in it is overwritten by the next image.
    """

    def __init__(self):
        self._memory = np.empty(0, dtype=np.uint8)

    def at_least(self, count: int) -> PixelArray:
        """Memory of ``count`` bytes or more: the one kept, or another where that is too small."""
        if count <= self._memory.size:
            return self._memory
        memory = np.empty(count, dtype=np.uint8)
        if count <= _MOST_KEPT_BYTES:
            self._memory = memory
        return memory


class ImageError(ValueError):
    """Bytes that are not an image we can read; the message is the reason."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself before its pixels are decoded.

    Attributes:
        height: rows.
        width: columns.
        extension: file name extension for its content, such as ``jpg``.
        fast: whether the strict JPEG decoder takes it.
    """

    height: int
    width: int
    extension: str
    fast: bool


def read_header(data: bytes) -> Header:
    """Read format and size of an image file from its first bytes; nothing large is allocated.

    Raises:
        ImageError: not an image of a known format, larger than `MAX_PIXELS`, or a JPEG of so many
            scans that they exceed `MAX_SCANNED_PIXELS`.
    """
    header = _jpeg_header(data) or _pillow_header(data)
    pixels = header.height * header.width
    if not pixels:
        raise ImageError(f"{header.width} x {header.height} pixels: nothing to see")
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{header.width} x {header.height} pixels, more than {MAX_PIXELS // 10**6} million"
        )
    if header.extension == "jpg":
        _check_scans(data, MAX_SCANNED_PIXELS // pixels)
    return header


def decode_rgb(
    data: bytes, header: Header, factor: int = 1, buffer: DecodeBuffer | None = None
) -> PixelArray:
    """Decode an image file to uint8 [height, width, 3], RGB.

    Args:
        data: the whole file.
        header: what `read_header` said about it.
        factor: reduction wanted: 1 (the full size), 2, 4 or 8; libjpeg-turbo is fast for these
            only. Only JPEGs honour it, and then the result ``ceil(height / factor)`` rows and
            ``ceil(width / factor)`` columns.
        buffer: to decode JPEGs into; the result is then valid until its next use.

    Raises:
        ImageError: the file is damaged or its header lied.
    """
    if header.fast:
        height, width = -(-header.height // factor), -(-header.width // factor)
        memory = None if buffer is None else buffer.at_least(3 * height * width)
        try:
            return simplejpeg.decode_jpeg(
                data,
                "RGB",
                min_height=height,
                min_width=width,
                min_factor=factor,
                buffer=memory,
                strict=True,
            )
        except ValueError:
            pass
    pixels = _pillow_rgb(data)
    if pixels.shape[:2] != (header.height, header.width):
        raise ImageError(f"damaged: its header says {header.width} x {header.height} pixels")
    return pixels


def _jpeg_header(data: bytes) -> Header | None:
    if not data.startswith(_JPEG_START):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return Header(int(height), int(width), "jpg", fast=colorspace in ("YCbCr", "RGB", "Gray"))


def _check_scans(data: bytes, most: int) -> None:
    # For nearly every image the first, cheapest bound settles it.
    if len(data) // _LEAST_SCAN_BYTES <= most:
        return
    if np.count_nonzero(np.frombuffer(data, np.uint8) == _JPEG_SCAN[1]) <= most:
        return
    scans = _count_scans(data)
    if scans > most:
        raise ImageError(f"a JPEG of {scans:,} scans: would take too long to decode")


def _count_scans(data: bytes) -> int:
    """Scans of a JPEG, up to its end mark; segments, which may hold anything, are passed over."""
    scans, at = 0, 2
    while (found := _JPEG_MARKER.search(data, at)) and data[found.start() + 1] != _JPEG_END:
        scans += found[0] == _JPEG_SCAN
        at = found.end()
        at += int.from_bytes(data[at : at + 2])
    return scans


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS // 10**6} million pixels") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image (begins with {data[:8]!r})") from None
    except Exception as error:  # noqa: BLE001 - its readers raise anything on mangled bytes
        raise ImageError(f"unreadable header: {_one_line(error)}") from None


def _pillow_header(data: bytes) -> Header:
    image = _open(data)
    return Header(image.height, image.width, _EXTENSIONS[str(image.format)], fast=False)


def _pillow_rgb(data: bytes) -> PixelArray:
    image = _open(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            if image.mode.startswith("I;16") or image.mode == "I":
                # Pillow's own conversion clips at 255 and would leave such images white.
                upper = np.asarray(image) >> 8
                image = Image.fromarray(upper.clip(0, 255).astype(np.uint8))
            return np.array(image.convert("RGB"))
    except Exception as error:  # noqa: BLE001 - its readers raise anything on mangled bytes
        raise ImageError(f"damaged: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__
