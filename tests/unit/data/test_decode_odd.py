"""Images nobody means to train on, and those made to do harm: refused or decoded, in bounds."""

import io
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_shards import jpeg

from pretrain.data import crop, decode
from pretrain.data.crop import eval_image, train_image
from pretrain.data.decode import ImageError, decode_rgb, read_header

PICTURE = Image.open(io.BytesIO(jpeg(7, 44, 61))).convert("RGB")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return decode_rgb(data, read_header(data))


def scan_starts(data: bytes) -> tuple[list[int], int]:
    """Where the scans of a JPEG begin, and where its end mark stands."""
    starts, at = [], 2
    while data[at + 1] != 0xD9:
        if data[at + 1] == 0xDA:
            starts.append(at)
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
        while data[at] != 0xFF or data[at + 1] in (0, *range(0xD0, 0xD8)):
            at += 1
    return starts, at


def many_scans(data: bytes, count: int) -> bytes:
    """The same picture with its last scan repeated: valid, and slow to decode."""
    starts, end = scan_starts(data)
    return data[:end] + data[starts[-1] : end] * count + data[end:]


def with_size(data: bytes, height: int, width: int) -> bytes:
    """A JPEG or GIF that says it is of another size."""
    if data[:3] == b"GIF":
        return data[:6] + struct.pack("<HH", width, height) + data[10:]
    at = next(data.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in data) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


FILES = {
    "baseline": saved(PICTURE, "JPEG"),
    "progressive": saved(PICTURE, "JPEG", progressive=True),
    "cmyk": saved(PICTURE.convert("CMYK"), "JPEG"),
    "mpo": saved(PICTURE, "MPO", save_all=True, append_images=[PICTURE]),
    "png": saved(PICTURE.quantize(16), "PNG", transparency=3),
    "gif": saved(PICTURE.quantize(16), "GIF"),
    "webp": saved(PICTURE, "WEBP"),
    "bmp": saved(PICTURE, "BMP"),
}


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_transparency_is_dropped_and_colours_stay(kind):
    """As Pillow's convert("RGB"), by which the published models saw such images."""
    palette = PICTURE.quantize(16)
    data = saved(palette, kind, **({} if kind == "TIFF" else {"transparency": 3}))
    assert (decoded(data) == np.asarray(palette.convert("RGB"))).all()
    layered = PICTURE.convert("LA")
    layered.putalpha(Image.linear_gradient("L").resize(PICTURE.size))
    if kind != "GIF":
        assert (decoded(saved(layered, kind)) == np.asarray(layered.convert("RGB"))).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_moving_pictures_the_first_is_taken(kind):
    black = Image.new("RGB", PICTURE.size)
    data = saved(PICTURE, kind, save_all=True, append_images=[black, black], duration=5)
    assert np.abs(decoded(data).astype(int) - np.asarray(PICTURE).astype(int)).mean() < 12


def test_inverted_cmyk_of_photo_editors_is_what_pillow_sees():
    data = FILES["cmyk"]
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (decoded(data) == pixels).all()
    assert np.abs(pixels.astype(int) - np.asarray(PICTURE).astype(int)).mean() < 8


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_wide_grays_keep_their_upper_bits(mode):
    values = np.arange(0, 65536, 32, dtype=np.uint16).reshape(32, 64)
    image = Image.frombytes(
        mode, (64, 32), values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]).tobytes()
    )
    pixels = decoded(saved(image, "TIFF"))
    assert (pixels == (values >> 8)[..., None]).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 65_500), (65_500, 1), (8, 65_500)])
def test_the_thinnest_images_give_ordinary_crops(height, width):
    data = saved(Image.new("RGB", (width, height), (90, 90, 90)), "JPEG")
    for image in (
        train_image(data, 5, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        eval_image(data, 32, 36),
        eval_image(data, 32, None),
    ):
        assert image.shape == (3, 32, 32)
        assert ((image >= 88) & (image <= 92)).all()


def test_only_the_middle_of_a_strip_is_evaluated(monkeypatch):
    """A row of 65,500 pixels would be made 256 rows of 16,768,000."""
    original, sizes = crop.resize, []
    monkeypatch.setattr(crop, "resize", lambda p, h, w: sizes.append((h, w)) or original(p, h, w))
    strip = np.zeros((2, 6400, 3), dtype=np.uint8)
    strip[:, 3100:3300] = 200
    image = eval_image(saved(Image.fromarray(strip), "PNG"), 224, 256)
    assert sizes == [(256, 256 * 32)]
    assert (image >= 199).all()


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_absurd_numbers_of_scans_are_refused_unseen(mode, monkeypatch):
    data = saved(PICTURE.convert(mode), "JPEG", progressive=True)
    ordinary = with_size(many_scans(data, 20), 5000, 5000)
    assert read_header(ordinary).width == 5000
    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    bomb = with_size(many_scans(data, 400), 5000, 5000)
    with pytest.raises(ImageError, match=r"a JPEG of 4\d\d scans: would take too long"):
        read_header(bomb)


def test_what_only_looks_like_scans_is_no_reason_to_refuse():
    """In a comment, or behind the end: cameras append whole films there."""
    comment = b"\xff\xfe" + struct.pack(">H", 60_002) + b"\xff\xda" * 30_000
    data = FILES["progressive"]
    noisy = with_size(data[:2] + comment + data[2:] + b"\xff\xda" * 30_000, 9000, 9000)
    assert read_header(noisy).fast
    assert (decoded(with_size(noisy, 44, 61)) == decoded(data)).all()


def test_images_without_pixels_are_refused(monkeypatch):
    monkeypatch.setattr(decode, "_jpeg_header", lambda _: decode.Header(0, 5, "jpg", fast=True))
    with pytest.raises(ImageError, match="5 x 0 pixels: nothing to see"):
        read_header(FILES["baseline"])


def test_pixels_that_belie_their_header_are_refused(monkeypatch):
    data = FILES["png"]
    header = read_header(data)
    monkeypatch.setattr(decode, "_pillow_rgb", lambda _: np.zeros((3, 3, 3), dtype=np.uint8))
    with pytest.raises(ImageError, match="its header says 61 x 44 pixels"):
        decode_rgb(data, header)


def test_whatever_a_reader_raises_is_a_bad_image(monkeypatch):
    """Pillow's readers raise errors of any kind on mangled files, and one must not end a run."""

    def broken(*_, **__):
        raise ZeroDivisionError

    data = FILES["png"]
    header = read_header(data)
    monkeypatch.setattr(Image.Image, "convert", broken)
    with pytest.raises(ImageError, match="damaged: ZeroDivisionError"):
        decode_rgb(data, header)
    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(ImageError, match="unreadable header: ZeroDivisionError"):
        read_header(data)


@st.composite
def mangled(draw) -> bytes:
    """An image file with a few bytes changed, removed, inserted or cut off."""
    data = bytearray(draw(st.sampled_from(list(FILES.values()))))
    for _ in range(draw(st.integers(1, 6))):
        # Most of what readers can be confused by stands at the beginning.
        limit = draw(st.sampled_from([40, 400, len(data)]))
        at = draw(st.integers(0, max(0, min(limit, len(data)) - 1)))
        match draw(st.sampled_from(["flip", "set", "drop", "insert", "cut"])):
            case "flip":
                data[at : at + 1] = bytes(b ^ 1 << draw(st.integers(0, 7)) for b in data[at:][:1])
            case "set":
                data[at : at + 1] = draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80"]))
            case "drop":
                del data[at : at + draw(st.sampled_from([1, 2, 16, 200]))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=20))
            case "cut":
                del data[at + draw(st.integers(0, len(data))) :]
    return bytes(data)


@settings(max_examples=400)
@given(mangled())
def test_mangled_files_decode_or_are_bad_images(data):
    try:
        header = read_header(data)
        if header.height * header.width > 4_000_000:
            return  # large sizes are decoded elsewhere, in bounds
        pixels = decode_rgb(data, header)
    except ImageError as error:
        assert str(error)
        assert "\n" not in str(error)
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape == (header.height, header.width, 3)
    assert train_image(data, 3, 16, (0.08, 1.0), (3 / 4, 4 / 3)).shape == (3, 16, 16)


BOUNDED = """
    import io, resource, struct, sys, zlib
    from pretrain.data.decode import ImageError, decode_rgb, read_header

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    def png(*chunks, width=9, height=9):
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        return b"\\x89PNG\\r\\n\\x1a\\n" + head + b"".join(chunks) + chunk(b"IEND", b"")

    packed = zlib.compress(bytes(500_000_000))
    bombs = {
        "large jpeg": bytes.fromhex(sys.argv[1]),
        "large gif": bytes.fromhex(sys.argv[2]),
        "large png": png(chunk(b"IDAT", packed), width=60_000, height=60_000),
        "png text": png(chunk(b"zTXt", b"a\\0\\0" + packed)),
        "png profile": png(chunk(b"iCCP", b"a\\0\\0" + packed)),
    }
    # More data than pixels: what is left over must not be unpacked into memory.
    image = png(chunk(b"IDAT", packed))
    resource.setrlimit(resource.RLIMIT_AS, (600 * 2**20, 600 * 2**20))
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    for name, data in bombs.items():
        try:
            decode_rgb(data, read_header(data))
        except ImageError as error:
            print(name, "refused:", error)
    try:
        print("png rest", decode_rgb(image, read_header(image)).shape)
    except ImageError as error:
        print("png rest", error)
"""


def test_bombs_take_neither_memory_nor_time():
    """In a process of its own that may not have the memory or the time they ask for."""
    large = [with_size(FILES[name], 60_000, 60_000).hex() for name in ("baseline", "gif")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BOUNDED), *large],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert all("refused" in line for line in lines[:5])
    assert sum("more than 100 million" in line for line in lines) == 3
    assert "MemoryError" not in done.stdout
