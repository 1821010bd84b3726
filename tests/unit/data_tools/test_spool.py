import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from data_tools import spool
from data_tools.archives import Listing
from data_tools.raw_forms import synsets, write_winter21
from data_tools.spool import list_gzip, remove_spool
from pretrain.errors import DataError

FILE_BYTES = 20_000
CONTENT = synsets(8, seed=1, classes=3)


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(spool, "_SPOOL_FILE_BYTES", FILE_BYTES)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "winter21_whole.tar.gz"
    write_winter21(path, CONTENT)
    return path


@pytest.fixture
def whole(archive, tmp_path) -> tuple[dict[str, bytes], list[tuple]]:
    """What an uninterrupted copy gives: the files, and the listing."""
    listing = list_gzip(archive, tmp_path / "whole")
    assert images(listing) == {
        (wnid, name.encode()): data
        for wnid, files in CONTENT.items()
        for name, data in files.items()
    }
    return files(tmp_path / "whole"), described(listing)


def images(listing: Listing) -> dict[tuple[str, bytes], bytes]:
    found = {}
    for part in listing.images:
        data = part.file.read_bytes()
        places = zip(part.names.full(), part.offsets.tolist(), part.sizes.tolist(), strict=True)
        found |= {(part.wnid, name): data[at : at + size] for name, at, size in places}
    return found


def described(listing: Listing) -> list[tuple]:
    return [
        (p.wnid, p.file.name, p.names.full(), p.offsets.tolist(), p.sizes.tolist())
        for p in listing.images
    ] + [(item.path, item.reason) for item in listing.skipped]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("images-*.spool"))}


def written_when(directory: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the files that are said to be finished."""
    mark = directory / "finished.json"
    count = len(json.loads(mark.read_text())["bytes"]) if mark.exists() else 0
    states = {path: path.stat() for path in sorted(directory.glob("images-*.spool"))[:count]}
    return {path.name: (s.st_ino, s.st_mtime_ns) for path, s in states.items()}


def killed(archive: Path, directory: Path, call: str, count: int) -> None:
    """Copy in a process that is killed when it calls something of the module that many times."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from data_tools import spool\n"
        "archive, directory = map(Path, sys.argv[1:3])\n"
        "call, left, size = sys.argv[3], int(sys.argv[4]), sys.argv[5]\n"
        "spool._SPOOL_FILE_BYTES = int(size)\n"
        "real = getattr(spool, call)\n"
        "def deadly(*arguments):\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left == 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*arguments)\n"
        "setattr(spool, call, deadly)\n"
        "spool.list_gzip(archive, directory)\n"
    )
    arguments = [str(archive), str(directory), call, str(count), str(FILE_BYTES)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("call", "count", "finished"),
    [
        ("_write_all", 1, 0),
        ("_write_all", 15, 3),  # in the middle of a file
        ("replace_text", 3, 2),  # a file is whole, but that was not written down
        ("_keep", 1, 6),
        ("sync", 1, 6),  # between the listing and its mark
    ],
)
def test_a_killed_copy_continues(archive, whole, tmp_path, call, count, finished):
    directory = tmp_path / "spool"
    killed(archive, directory, call, count)
    before = written_when(directory)
    assert len(before) == finished
    assert not (directory / "listing.json").exists()
    listing = list_gzip(archive, directory)
    assert (files(directory), described(listing)) == whole
    assert before.items() <= written_when(directory).items()


def test_a_copy_may_be_killed_again_and_again(archive, whole, tmp_path):
    directory = tmp_path / "spool"
    for count in (2, 3, 1, 2):  # finished files in each attempt, and one more that is not noted
        killed(archive, directory, "replace_text", count)
    assert len(written_when(directory)) == 4
    listing = list_gzip(archive, directory)
    assert (files(directory), described(listing)) == whole


def test_a_complete_spool_is_found_without_reading_the_archive(
    archive, whole, tmp_path, monkeypatch
):
    directory = tmp_path / "spool"
    list_gzip(archive, directory)
    monkeypatch.setattr(spool, "_fill_spool", None)
    assert described(list_gzip(archive, directory)) == whole[1]


@pytest.mark.parametrize("damage", ["shorter", "longer", "missing"])
def test_files_that_are_not_as_finished_are_written_again(archive, whole, tmp_path, damage):
    directory = tmp_path / "spool"
    killed(archive, directory, "_keep", 1)
    path = directory / "images-000003.spool"
    data = path.read_bytes()
    path.write_bytes({"shorter": data[:-1], "longer": data + b"x", "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    before = written_when(directory)
    list_gzip(archive, directory)
    assert files(directory) == whole[0]
    after = written_when(directory)
    kept = [f"images-{number:06d}.spool" for number in range(3)]
    assert [before[name] for name in kept] == [after[name] for name in kept]


@pytest.mark.parametrize("damage", [None, b"", b"flip"])
def test_a_damaged_listing_is_made_again_and_the_files_are_kept(archive, whole, tmp_path, damage):
    directory = tmp_path / "spool"
    list_gzip(archive, directory)
    before = written_when(directory)
    data = (directory / "listing.bin").read_bytes()
    if damage is None:
        (directory / "listing.bin").unlink()
    else:
        (directory / "listing.bin").write_bytes(damage and bytes([data[0] ^ 1]) + data[1:])
    assert described(list_gzip(archive, directory)) == whole[1]
    assert written_when(directory) == before
    assert len(before) == 6


def test_the_spool_of_another_archive_is_not_used(archive, tmp_path):
    directory = tmp_path / "spool"
    killed(archive, directory, "_keep", 1)
    other = synsets(8, seed=2, classes=3)
    write_winter21(tmp_path / "other.tar.gz", other)
    listing = list_gzip(tmp_path / "other.tar.gz", directory)
    pictures = {data for made in other.values() for data in made.values()}
    assert set(images(listing).values()) == pictures
    # The same again, written anew in between.
    os.utime(tmp_path / "other.tar.gz", ns=(1, 1))
    before = written_when(directory)
    list_gzip(tmp_path / "other.tar.gz", directory)
    assert not before.items() & written_when(directory).items()


def test_a_spool_that_contradicts_its_archive_is_refused(archive, tmp_path):
    directory = tmp_path / "spool"
    killed(archive, directory, "_keep", 1)
    mark = json.loads((directory / "finished.json").read_text())
    mark["bytes"][1] -= 7
    (directory / "finished.json").write_text(json.dumps(mark))
    with (directory / "images-000001.spool").open("r+b") as file:
        file.truncate(mark["bytes"][1])
    with pytest.raises(
        DataError, match=r"000001\.spool: not what the archive gives; remove .*/spool"
    ):
        list_gzip(archive, directory)


def test_two_at_once_are_refused(archive, tmp_path):
    directory = tmp_path / "spool"
    with (
        spool._open_spool(directory),
        pytest.raises(DataError, match="another process is filling it"),
    ):
        list_gzip(archive, directory)


def test_a_damaged_end_is_noticed_after_all_is_copied(archive, tmp_path):
    data = bytearray(archive.read_bytes())
    data[-6] ^= 1  # in the checksum of the whole
    (tmp_path / "bent.tar.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"bent\.tar\.gz: damaged or cut short: CRC check failed"):
        list_gzip(tmp_path / "bent.tar.gz", tmp_path / "spool")
    assert not (tmp_path / "spool" / "listing.json").exists()


def test_an_archive_of_nothing_makes_no_files(tmp_path):
    buffer = io.BytesIO()
    tarfile.open(fileobj=buffer, mode="w").close()
    (tmp_path / "empty.tar.gz").write_bytes(gzip.compress(buffer.getvalue()))
    listing = list_gzip(tmp_path / "empty.tar.gz", tmp_path / "spool")
    assert listing == Listing([], [])
    assert list_gzip(tmp_path / "empty.tar.gz", tmp_path / "spool") == listing
    remove_spool(tmp_path / "spool")
    assert not (tmp_path / "spool").exists()


def test_the_digest_of_a_spool_is_that_of_its_images(whole):
    """Nothing else is in the files, and nothing stands twice."""
    stored = hashlib.sha256(b"".join(whole[0].values())).hexdigest()
    parts = [data for made in CONTENT.values() for data in reversed(list(made.values()))]
    assert stored == hashlib.sha256(b"".join(parts)).hexdigest()
