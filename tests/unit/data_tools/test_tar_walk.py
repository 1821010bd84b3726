import gzip
import io
import os
import tarfile

import pytest

from data_tools.tar_headers import Member, TarError
from data_tools.tar_walk import walk

CONTENTS = {"a/one.jpg": b"x" * 700, "a/one.cls": b"7", "two.jpg": b"", "two.cls": b"12" * 256}


def tar_bytes(contents=CONTENTS, tar_format=tarfile.USTAR_FORMAT, **fields) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def walked(tmp_path, data: bytes) -> list[Member]:
    path = tmp_path / "some.tar"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(walk(descriptor))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
)
def test_members_are_those_tarfile_sees(tmp_path, tar_format):
    long_name = "folder/" * 12 + "x" * 90 + ".jpg"
    contents = {**CONTENTS, long_name: b"long"}
    data = tar_bytes(contents, tar_format, mtime=1.5 if tar_format == tarfile.PAX_FORMAT else 1)
    members = walked(tmp_path, data)
    assert {m.name: data[m.offset : m.offset + m.bytes] for m in members} == contents
    for member in members:
        header = data[member.offset - 512 : member.offset]
        assert header.startswith(member.header_name)


def test_unicode_names_and_directories_are_read(tmp_path):
    data = tar_bytes({"é.jpg": b"1"}, tarfile.PAX_FORMAT)
    assert [m.name for m in walked(tmp_path, data)] == ["é.jpg"]
    assert walked(tmp_path, tar_bytes({"folder": b""}, type=tarfile.DIRTYPE)) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with pytest.raises(TarError, match=r"member 'evil\.jpg' is a "):
        walked(tmp_path, tar_bytes({"evil.jpg": b""}, type=kind, linkname="/etc/passwd"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (gzip.compress(tar_bytes()), "gzip-compressed"),
        (b"\n<!DOCTYPE html><html>404", "a web page"),
        (b'{"error": "rate limited"}', "a web page or an error message"),
        (b"\x89PNG" + bytes(2000), r"not a tar file \(begins with b'\\x89PNG"),
    ],
)
def test_what_is_no_tar_is_named(tmp_path, data, message):
    with pytest.raises(TarError, match=message):
        walked(tmp_path, data)


def test_a_tar_cut_anywhere_is_noticed(tmp_path):
    data = tar_bytes()
    content_ends = len(data.rstrip(b"\0"))
    needed = -(-content_ends // 512) * 512 + 1024
    for length in [*range(0, needed, 128), needed - 1]:
        with pytest.raises(TarError):
            walked(tmp_path, data[:length])
    assert len(walked(tmp_path, data[:needed])) == 4


def test_every_bit_of_every_header_counts(tmp_path):
    data = tar_bytes()
    headers = [member.offset - 512 for member in walked(tmp_path, data)]
    names = [member.name for member in walked(tmp_path, data)]
    for header in headers:
        for place in [*range(0, 100, 7), *range(124, 136), *range(149, 154), 156, 257, 345]:
            damaged = bytearray(data)
            damaged[header + place] ^= 1 << place % 8
            try:
                assert [member.name for member in walked(tmp_path, bytes(damaged))] == names
            except TarError:
                continue
            pytest.fail(f"bit {place % 8} of byte {place} passed")


@pytest.mark.parametrize("record", [b"x path=a\n", b"12 size=-99\n", b"3 \n", b"99 path=a\n"])
def test_damaged_pax_records_are_refused(tmp_path, record):
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", len(record)
    data = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tar_bytes()
    with pytest.raises(TarError, match="damaged extended header"):
        walked(tmp_path, data)


def test_what_follows_the_end_is_refused(tmp_path):
    with pytest.raises(TarError, match="something follows"):
        walked(tmp_path, tar_bytes() + tar_bytes())
    damaged = bytearray(tar_bytes())
    damaged[-1] = 1
    with pytest.raises(TarError, match="something follows"):
        walked(tmp_path, bytes(damaged))


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "a/../../b.jpg"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(TarError, match="leads out of the archive"):
        walked(tmp_path, tar_bytes({name: b"x"}))


def test_names_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(TarError, match=r"name 'a\\udcff' at byte 512 is not UTF-8"):
        walked(tmp_path, tar_bytes({"a\udcff": b"x"}, tarfile.GNU_FORMAT))


def test_a_lone_empty_block_is_the_end_and_then_something_follows(tmp_path):
    data = tar_bytes()
    with pytest.raises(TarError, match="something follows the closing empty block at byte 0"):
        walked(tmp_path, bytes(512) + data)
