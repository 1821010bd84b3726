"""Reads image files out of a source and mends what is known to be wrong with some of them."""

import io
import os
import zlib
from collections import OrderedDict
from dataclasses import dataclass

from PIL import Image

from data_tools.sources import Images
from pretrain.data.decode import ImageError, decode_rgb, read_header

MAX_IMAGE_BYTES = 256 * 2**20
_GZIP_START = b"\x1f\x8b"
_FILES_OPEN = 16
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class RawImage:
    """An image file that decodes.

    Attributes:
        data: its bytes.
        extension: for its content.
        repairs: what was done to it; empty when its bytes are the source's.
    """

    data: bytes
    extension: str
    repairs: tuple[str, ...]


class RawReader:
    """Reads the images of a split by position; a few archives are kept open.

    Args:
        images: the split.
        max_side: larger images are made this large and stored as JPEG; None leaves all as they are.
    """

    def __init__(self, images: Images, max_side: int | None):
        self._images = images
        self._max_side = max_side
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, position: int) -> RawImage:
        """Read, mend and check one image.

        Raises:
            ImageError: it cannot be used; the message is the reason.
        """
        if self._images.sizes[position] > MAX_IMAGE_BYTES:
            raise ImageError(f"larger than {MAX_IMAGE_BYTES // 2**20} MiB")
        try:
            data = self._stored(position)
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror}") from None
        data, repairs = _mended(data)
        header = read_header(data)
        pixels = decode_rgb(data, header)
        if self._max_side is None or max(pixels.shape[:2]) <= self._max_side:
            return RawImage(data, header.extension, repairs)
        image = Image.fromarray(pixels)
        image.thumbnail((self._max_side, self._max_side), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return RawImage(file.getvalue(), "jpg", repairs)

    def close(self) -> None:
        """Close the archives."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _stored(self, position: int) -> bytes:
        places, size = self._images.places, int(self._images.sizes[position])
        if places is None:
            name = os.fsdecode(self._images.name(position))
            if self._images.flat:
                name = name.rpartition("/")[2]
            path = self._images.folder / name
            with path.open("rb") as file:
                data = file.read(size + 1)
            if len(data) != size:
                raise ImageError("has changed since it was listed")
            return data
        descriptor = self._descriptor(int(places.file[position]))
        data, offset = b"", int(places.offset[position])
        deflated = 0 if places.deflated is None else int(places.deflated[position])
        stored = deflated or size
        while len(data) < stored:
            more = os.pread(descriptor, stored - len(data), offset + len(data))
            if not more:
                raise ImageError("the archive ends before it")
            data += more
        return _inflated(data, size) if deflated else data

    def _descriptor(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        assert self._images.places is not None  # noqa: S101 - only called for archives
        while len(self._open) >= _FILES_OPEN:
            os.close(self._open.popitem(last=False)[1])
        file = self._images.places.files[number]
        self._open[number] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[number]


def _mended(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Undo compression inside the file, and NULs before it: both occur in ImageNet-22K."""
    repairs: list[str] = []
    for _ in range(2):
        if data.startswith(b"\0") and data.strip(b"\0"):
            stripped = data.lstrip(b"\0")
            repairs.append(f"removed {len(data) - len(stripped):,} NUL bytes before it")
            data = stripped
        if data.startswith(_GZIP_START):
            data = _decompressed(data)
            repairs.append("decompressed: it was a gzip file")
    return data, tuple(repairs)


def _inflated(data: bytes, size: int) -> bytes:
    """A member of a zip."""
    inflate = zlib.decompressobj(wbits=-15)
    try:
        plain = inflate.decompress(data, size + 1)
    except zlib.error as error:
        raise ImageError(f"damaged in its zip: {error}") from None
    if len(plain) != size:
        raise ImageError(f"damaged in its zip: {len(plain):,} bytes, expected {size:,}")
    return plain


def _decompressed(data: bytes) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    try:
        plain = inflate.decompress(data, MAX_IMAGE_BYTES + 1)
    except zlib.error as error:
        raise ImageError(f"damaged gzip file: {error}") from None
    if len(plain) > MAX_IMAGE_BYTES:
        raise ImageError(f"a gzip file that grows beyond {MAX_IMAGE_BYTES // 2**20} MiB")
    if not inflate.eof:
        raise ImageError("damaged gzip file: cut short")
    return plain
