import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from tiny_shards import jpeg

from pretrain.data import decode
from pretrain.data.decode import MAX_PIXELS, DecodeBuffer, ImageError, decode_rgb, read_header


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def a_picture(mode: str = "RGB") -> Image.Image:
    return Image.open(io.BytesIO(jpeg(3))).convert(mode)


def decoded(data: bytes) -> np.ndarray:
    return decode_rgb(data, read_header(data))


def test_jpegs_are_decoded_as_pillow_does():
    data = jpeg(1, 51, 67)
    pixels = decoded(data)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (51, 67, 3)
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(pixels - reference).max() <= 2


def test_the_fast_path_is_taken(monkeypatch):
    monkeypatch.setattr(decode, "_pillow_rgb", lambda _: pytest.fail("Pillow was asked"))
    for data in (jpeg(1), saved(a_picture("L"), "JPEG"), jpeg(2, progressive=True)):
        assert decoded(data).shape == (48, 40, 3)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_other_formats_are_decoded_whatever_their_name(kind):
    data = saved(a_picture(), kind)
    header = read_header(data)
    assert header.extension == kind.lower()[:4].replace("tiff", "tif")
    assert (header.height, header.width) == (48, 40)
    assert decoded(data).shape == (48, 40, 3)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("L", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("RGBA", "PNG"),
     ("LA", "PNG"), ("CMYK", "TIFF")],
)  # fmt: skip
def test_every_mode_becomes_rgb(mode, kind):
    image = a_picture(mode)
    pixels = decoded(saved(image, kind))
    difference = np.abs(pixels.astype(int) - np.asarray(image.convert("RGB")).astype(int))
    assert difference.mean() < (6 if kind == "JPEG" else 0.01)


def test_sixteen_bit_images_keep_their_upper_bits():
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    pixels = decoded(saved(Image.fromarray(values), "PNG"))
    assert (pixels == (values >> 8)[..., None]).all()


def test_rotation_tags_are_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(a_picture(), "JPEG", exif=exif.tobytes())
    assert decoded(data).shape == (48, 40, 3)


def test_one_pixel_is_an_image():
    assert decoded(saved(Image.new("RGB", (1, 1), (9, 9, 9)), "JPEG")).shape == (1, 1, 3)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_scaled_decoding_is_a_smaller_picture_of_the_same(factor):
    data = jpeg(4, 131, 98, quality=95)
    header = read_header(data)
    small = decode_rgb(data, header, factor)
    assert small.shape == (-(-131 // factor), -(-98 // factor), 3)
    rows, columns = 131 // factor, 98 // factor
    whole = decode_rgb(data, header)[: rows * factor, : columns * factor].astype(float)
    means = whole.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3))
    assert np.abs(small[:rows, :columns] - means).mean() < 2


def test_formats_without_scaling_ignore_the_factor():
    data = saved(a_picture(), "PNG")
    assert decode_rgb(data, read_header(data), 4).shape == (48, 40, 3)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 4096, b"<!DOCTYPE html><html></html>", b"\xff\xd8\xff", b"\x1f\x8b" + jpeg(1),
     b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n", jpeg(1)[:30]],
)  # fmt: skip
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ImageError):
        decoded(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
def test_truncated_files_are_refused(kind, share):
    data = saved(a_picture(), kind)
    with pytest.raises(ImageError, match=r"damaged|unreadable"):
        decoded(data[: int(len(data) * share)])


def test_bombs_are_refused_from_their_header(monkeypatch):
    """The size stands in the header; nothing may be decoded to find it."""
    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(decode, "_pillow_rgb", lambda _: pytest.fail("decoded"))
    start = jpeg(1)
    at = start.index(b"\xff\xc0") + 5
    big_jpeg = start[:at] + struct.pack(">HH", 12000, 12000) + start[at + 4 :]
    fields = struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + fields
    big_png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    big_png += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4
    for data in (big_jpeg, big_png):
        with pytest.raises(ImageError, match=f"more than {MAX_PIXELS // 10**6} million"):
            decoded(data)


def test_a_warning_of_the_strict_decoder_asks_pillow(monkeypatch):
    """Stray bytes before the end marker: libjpeg warns, published training used the image."""
    whole = jpeg(5, 64, 64)
    data = whole[:-2] + b"\x12" * 40 + whole[-2:]
    with pytest.raises(ValueError, match=r"extraneous|Corrupt"):
        simplejpeg.decode_jpeg(data)
    assert np.abs(decoded(data).astype(int) - decoded(whole)).max() <= 2


def test_a_buffer_changes_no_pixel_and_is_used_again(monkeypatch):
    monkeypatch.setattr(decode, "_MOST_KEPT_BYTES", 40_000)
    buffer = DecodeBuffer()
    for seed, (height, width) in enumerate([(48, 40), (70, 90), (9, 13), (200, 200), (70, 90)]):
        data = jpeg(seed, height, width)
        header = read_header(data)
        for factor in (1, 2, 8):
            expected = decode_rgb(data, header, factor)
            assert np.array_equal(decode_rgb(data, header, factor, buffer), expected)
    kept = buffer.at_least(1)
    assert kept.size == 200 * 200 * 3 // 4
    assert np.shares_memory(buffer.at_least(100), kept)
    damaged = bytearray(jpeg(1))
    damaged[len(damaged) // 2 :] = b""
    with pytest.raises(ImageError):
        decode_rgb(bytes(damaged), read_header(jpeg(1)), buffer=buffer)
