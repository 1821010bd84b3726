"""Damage of every kind to tars of every kind: an error that says so, or what was there."""

import io
import os
import tarfile
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import tar_walk, tars
from data_tools.tar_headers import TarError
from pretrain.errors import DataError

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
BLOCK = 512


@dataclass(frozen=True)
class Archive:
    """A valid tar: its bytes, where its headers are, and its bytes up to the end mark."""

    data: bytes = field(repr=False)
    members: list[tuple[str, int, int]]
    headers: list[int]
    extensions: list[range]
    needed: int


@st.composite
def archives(draw) -> Archive:
    form = draw(st.sampled_from(FORMATS))
    long = form != tarfile.USTAR_FORMAT
    names = st.text("abo/.é" if long else "abo", min_size=1, max_size=9)
    lengths = st.sampled_from([0, 1, 511, 512, 513, 1500])
    buffer = io.BytesIO()
    members: list[tuple[str, int, int]] = []
    headers, extensions = [], []
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for number, (name, length) in enumerate(draw(st.lists(st.tuples(names, lengths)))):
            safe = name.replace("/", "x/").replace(".", "d.") + f"{number}"
            info = tarfile.TarInfo(safe * (12 if long and draw(st.booleans()) else 1))
            info.size = length
            before = buffer.tell()
            tar.addfile(info, io.BytesIO(b"%d" % number * length))
            payload = buffer.tell() - -(-length // BLOCK) * BLOCK
            members.append((info.name, payload, length))
            headers += [before, payload - BLOCK]
            if payload - before > BLOCK:
                extensions.append(range(before + BLOCK, payload - BLOCK))
        needed = buffer.tell() + 2 * BLOCK
    return Archive(buffer.getvalue(), members, sorted(set(headers)), extensions, needed)


def strict(data: bytes) -> list[tuple[str, int, int]]:
    descriptor = os.memfd_create("x")
    try:
        os.write(descriptor, data)
        return [(m.name, m.offset, m.bytes) for m in tar_walk.walk(descriptor)]
    finally:
        os.close(descriptor)


def forgiving(data: bytes) -> list[tuple[str, int, bytes]] | str:
    """What a stream gives, or what is said of it; a file must give the same."""
    stream = tars.StreamExtent(io.BytesIO(data))
    descriptor = os.memfd_create("x")
    answers: list[list[tuple[str, int, bytes]] | str] = []
    try:
        os.write(descriptor, data)
        for extent in (stream, tars.FileExtent(descriptor, 0, len(data))):
            found: list[tuple[str, int, bytes]] = []
            try:
                for m in tars.walk(extent, "x.tar"):
                    found.append((m.name, m.offset, extent.read(m.bytes)))
            except DataError as error:
                answers.append(str(error))
            else:
                answers.append(found)
    finally:
        os.close(descriptor)
    assert answers[0] == answers[1]
    return answers[0]


def flipped(data: bytes, places: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(data)
    for place, bit in places:
        damaged[place] ^= 1 << bit
    return bytes(damaged)


@given(archives())
@settings(max_examples=100, deadline=None)
def test_valid_archives_are_read_by_both(archive):
    assert strict(archive.data) == archive.members
    assert forgiving(archive.data) == [
        (name, at, archive.data[at : at + size]) for name, at, size in archive.members
    ]


@given(archives(), st.data())
@settings(max_examples=300, deadline=None)
def test_flipped_bits_never_move_a_payload_in_silence(archive, data):
    """At most one in each header, which its checksum cannot miss; any number anywhere else."""
    length = len(archive.data)
    places: dict[int, tuple[int, int]] = {}
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.one_of(
            st.integers(0, length - 1),
            *(st.integers(at, at + BLOCK - 1) for at in archive.headers),
            *(st.sampled_from(part) for part in archive.extensions),
        ))  # fmt: skip
        header = place // BLOCK * BLOCK in archive.headers
        places[place // BLOCK if header else -place] = (place, data.draw(st.integers(0, 7)))
    damaged = flipped(archive.data, list(places.values()))
    try:
        found = strict(damaged)
    except TarError:
        pass
    else:
        assert [m[1:] for m in found] == [m[1:] for m in archive.members]
        if not any(place in part for place, _ in places.values() for part in archive.extensions):
            assert [m[0] for m in found] == [m[0] for m in archive.members]
    answer = forgiving(damaged)
    if not isinstance(answer, str):
        assert [(at, len(payload)) for _, at, payload in answer] == [m[1:] for m in archive.members]


@given(archives(), st.data())
@settings(max_examples=150, deadline=None)
def test_truncations_are_noticed(archive, data):
    end = data.draw(st.integers(0, archive.needed - 1))
    try:
        strict(archive.data[:end])
    except TarError:
        pass
    else:
        raise AssertionError(f"cut at {end} of {archive.needed}, unnoticed")
    assert "cut short" in forgiving(archive.data[:end])


@given(archives(), st.data())
@settings(max_examples=300, deadline=None)
def test_nothing_makes_them_crash(archive, data):
    """Blocks lost, doubled, emptied, exchanged, invented; bits flipped anywhere; cut anywhere."""
    blocks = [archive.data[at : at + BLOCK] for at in range(0, len(archive.data), BLOCK)]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blocks) - 1))
        other = data.draw(st.integers(0, len(blocks) - 1))
        invented = data.draw(st.binary(min_size=BLOCK, max_size=BLOCK))
        blocks[at : at + 1] = data.draw(
            st.sampled_from([[], [blocks[at]] * 2, [bytes(BLOCK)], [blocks[other]], [invented]])
        )
        if not blocks:
            break
    damaged = b"".join(blocks)
    bits = st.tuples(st.integers(0, max(0, len(damaged) - 1)), st.integers(0, 7))
    damaged = flipped(damaged, data.draw(st.lists(bits, max_size=9)) if damaged else [])
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    forgiving(damaged)
    try:
        strict(damaged)
    except TarError as error:
        assert str(error)


@given(st.binary(max_size=3 * BLOCK))
@settings(max_examples=200, deadline=None)
def test_any_bytes_get_an_answer(data):
    forgiving(data)
    try:
        strict(data)
    except TarError as error:
        assert str(error)


def checked(block: bytes) -> bytes:
    """A header block with the checksum it ought to have."""
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


@given(archives(), st.data())
@settings(max_examples=300, deadline=None)
def test_hostile_headers_with_good_checksums(archive, data):
    """Whoever writes the archive can also compute a checksum."""
    if not archive.headers:
        return
    damaged = bytearray(archive.data)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(archive.headers))
        field, width = data.draw(st.sampled_from([(0, 100), (124, 12), (156, 1), (345, 155)]))
        text = data.draw(st.one_of(
            st.binary(min_size=width, max_size=width),
            st.sampled_from([b"../x", b"/x", b"x/", b"\x80" + b"\xff" * 11, b"77777777777", b"-1",
                             b"0", b"x", b"L", b"K", b"g", b"S", b"2"]),
        ))  # fmt: skip
        damaged[at + field : at + field + width] = text[:width].ljust(width, b"\0")
        damaged[at : at + BLOCK] = checked(bytes(damaged[at : at + BLOCK]))
    answer = forgiving(bytes(damaged))
    try:
        names = [name for name, *_ in strict(bytes(damaged))]
    except TarError as error:
        assert str(error)
        names = []
    names += [] if isinstance(answer, str) else [name for name, *_ in answer]
    for name in names:
        assert not name.startswith("/")
        assert ".." not in name.split("/")
        assert "\0" not in name
