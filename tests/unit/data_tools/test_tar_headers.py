import io
import tarfile

import pytest

from data_tools.tar_headers import CutShortError, Member, TarError, is_header, parse_header


def header(name: str = "a", kind: bytes = b"0", size: int = 0, form: int = tarfile.GNU_FORMAT):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(form)


def record(keyword: str, value: str) -> bytes:
    rest = f" {keyword}={value}\n".encode()
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return b"%d" % length + rest


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    text = b"".join(records)
    return header("pax", kind, len(text)) + text.ljust(-(-len(text) // 512) * 512, b"\0")


def with_size(field: bytes) -> bytes:
    """A header whose size field is this, with the checksum it ought to have."""
    block = bytearray(header())
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def parsed(data: bytes) -> Member:
    stream = io.BytesIO(data)
    return parse_header(stream.read(512), 0, stream.read)


def test_a_header_says_where_its_bytes_are():
    assert parsed(header("a/./b//c.jpg", size=700)) == Member(
        "a/b/c.jpg", b"a/./b//c.jpg", 512, 700, True
    )
    assert parsed(header(size=700)).end == 512 + 1024


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
def test_files_of_every_age_are_files(kind):
    assert parsed(header("a.jpg", kind)).is_file


def test_folders_take_no_bytes_whatever_their_size_says():
    assert parsed(header("a", b"5", 700)) == Member("a", b"a/", 512, 0, False)
    assert not parsed(header("old/", b"\0")).is_file


def test_an_extended_name_cannot_make_a_folder_of_a_file():
    with pytest.raises(TarError, match="leads out of the archive"):
        parsed(pax(record("path", "a/")) + header("b", size=1))


def test_large_sizes_are_read():
    assert parsed(header(size=2**40)).bytes == 2**40
    assert parsed(with_size(b"00000001750\0")).bytes == 1000
    assert parsed(with_size(b"\0" * 12)).bytes == 0
    large = pax(record("size", str(2**40))) + with_size(b"00000000000\0")
    assert parsed(large).bytes == 2**40


@pytest.mark.parametrize(
    "field",
    [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-0000000001\0", b"0x000000001\0", b"1_0".ljust(12)],
)
def test_impossible_sizes_are_refused(field):
    with pytest.raises(TarError, match="impossible size in the header at byte 0"):
        parsed(with_size(field))


@pytest.mark.parametrize("size", ["699", "-1", "1e3", "", "9" * 30, str(2**50)])
def test_a_size_no_checksum_covers_must_agree_or_be_needed(size):
    with pytest.raises(TarError, match="damaged extended header: size"):
        parsed(pax(record("size", size)) + header(size=700))
    assert parsed(pax(record("size", "700")) + header(size=700)).bytes == 700


def test_extended_names_count():
    long = "x" * 300
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        member = parsed(header(long, size=3, form=form))
        assert (member.name, member.header_name, member.bytes) == (long, b"x" * 100, 3)
    member = parsed(pax(record("path", "grün"), record("comment", "=\n")) + header("b"))
    assert member.name == "grün"
    assert parsed(header("p" * 60 + "/" + "n" * 90, form=tarfile.USTAR_FORMAT)).name[60] == "/"


def test_global_headers_are_about_no_member():
    member = parsed(pax(record("comment", "x"), kind=b"g") + header())
    assert (member.is_file, member.end) == (False, 1024)


def test_sparse_files_are_refused_in_the_form_of_pax_too():
    data = pax(record("GNU.sparse.major", "1"), record("GNU.sparse.name", "a")) + header("b")
    with pytest.raises(TarError, match="member 'b' is a sparse file"):
        parsed(data)


def test_extended_headers_that_never_end_are_refused():
    with pytest.raises(TarError, match="extended header of 1,048,577 bytes"):
        parsed(header("a", b"L", 2**20 + 1))
    with pytest.raises(CutShortError, match="inside the extended header"):
        parsed(header("a", b"L", 700) + bytes(600))
    with pytest.raises(CutShortError, match="inside the header at byte 1,024"):
        parsed(pax(record("path", "x")))


def test_both_ways_to_sum_a_header_are_known():
    block = bytearray(header("grün", form=tarfile.GNU_FORMAT))
    assert is_header(bytes(block))
    blank = block[:148] + b" " * 8 + block[156:]
    block[148:156] = b"%06o\0 " % sum(b - 256 if b > 127 else b for b in blank)
    assert is_header(bytes(block))
    block[148:156] = b"%06o\0 " % (sum(blank) + 1)
    assert not is_header(bytes(block))
