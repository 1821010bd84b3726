import io
import os
import tarfile

import pytest

from data_tools.tars import FileExtent, StreamExtent, walk
from pretrain.errors import DataError


def archive(files: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def one(kind: bytes, name: str = "a") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    return buffer.getvalue()


def walked(data: bytes, **options) -> dict[str, bytes]:
    """What both kinds of extent see; they must agree."""
    stream = StreamExtent(io.BytesIO(data))
    found = {member.name: stream.read(member.bytes) for member in walk(stream, "x.tar", **options)}
    descriptor = os.memfd_create("x")
    try:
        os.write(descriptor, data)
        extent = FileExtent(descriptor, 0, len(data))
        members = list(walk(extent, "x.tar", **options))
    finally:
        os.close(descriptor)
    assert {m.name: data[m.offset : m.offset + m.bytes] for m in members} == found
    return found


FILES = {"a/b.JPEG": b"x" * 700, "empty": b"", "exact": b"y" * 512, "last": b"z"}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_is_read(form):
    long = {"d" * 90 + "/" + "e" * 90 + ".JPEG": b"1", **FILES}
    if form != tarfile.USTAR_FORMAT:
        long |= {"f" * 300: b"2", "grün": b"3"}
    assert walked(archive(long, form)) == long


def test_a_lone_block_of_nuls_is_stepped_over():
    data = archive(FILES)
    cut = 512 + 1024
    data = data[:cut] + bytes(512) + data[cut:]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["a/b.JPEG"]
    assert walked(data) == FILES


def test_what_follows_the_end_mark_is_ignored():
    assert walked(archive(FILES) + b"garbage" * 200) == FILES


@pytest.mark.parametrize("end", [0, 100, 512, 600, 1536, 1537, 2048, 3000])
def test_an_archive_that_ends_early_is_refused(end):
    data = archive(FILES)
    with pytest.raises(DataError, match=r"x\.tar: cut short.*without its end mark.*fetch"):
        walked(data[:end])


def test_every_damaged_header_bit_is_noticed():
    data = bytearray(archive(FILES))
    for bit in range(512 * 8):
        if bit // 8 in range(148, 156):
            continue
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError, match=r"x\.tar: damaged: no tar header at byte 0"):
            walked(bytes(data))
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (b"S", "a sparse file"),
        (b"Q", "of unknown kind"),
    ],
)
def test_links_and_devices_are_refused(kind, what):
    with pytest.raises(DataError, match=rf"x\.tar: member 'a' is {what}"):
        walked(one(kind))


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x"])
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(DataError, match="leads out of the archive"):
        walked(archive({name: b"x"}))


def test_impossible_sizes_are_refused_before_memory_is_taken():
    info = tarfile.TarInfo("a")
    info.size = 2**60
    data = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    with pytest.raises(DataError, match="impossible size"):
        walked(data)
    info.size, info.type = 2**30, tarfile.GNUTYPE_LONGNAME
    with pytest.raises(DataError, match=r"extended header of 1,073,741,824 bytes"):
        walked(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
