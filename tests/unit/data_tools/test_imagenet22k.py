import gzip
import io
import json
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from raw_sets import build, digests, write_forms

from data_tools import imagenet22k as module
from data_tools import pack, raw, spool
from data_tools.archives import Collector, Home, Listing
from data_tools.raw_forms import FORMS_22K, synsets, write_fall11, write_folders, write_tars
from pretrain.data.manifest import read_manifest
from pretrain.data.shards import ShardReader
from pretrain.errors import DataError

CONTENT = synsets(12, seed=0, classes=3)
FIRST, SECOND, LAST = sorted(CONTENT)
PICTURES = list(CONTENT[LAST].values())


def run(source: Path, destination: Path, *options: str) -> int:
    return build("imagenet22k", source, destination, *options)


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Path:
    return write_forms(tmp_path_factory.mktemp("forms"), FORMS_22K, CONTENT)


@pytest.fixture(scope="module")
def built(forms, tmp_path_factory) -> Path:
    destination = tmp_path_factory.mktemp("built") / "set"
    assert run(forms / "fall11_whole.tar", destination) == 0
    return destination


def test_every_usable_image_is_there_once(built):
    manifest = read_manifest(built)
    assert manifest.edition == "imagenet22k"
    assert manifest.classes == tuple(sorted(CONTENT))
    expected = set()
    for wnid, files in CONTENT.items():
        for data in files.values():
            plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data.lstrip(b"\0")
            if not plain.startswith(b"<html>"):
                expected.add((wnid, plain))
    reader = ShardReader(built, manifest.split("train").shards, 3)
    packed = [reader.read(i) for i in range(manifest.split("train").samples)]
    assert len(packed) == len(expected) == 35
    assert {(manifest.classes[s.label], s.data) for s in packed} == expected
    assert len(manifest.split("train").shards) > 3


def test_repairs_and_omissions_are_listed(built):
    assert (built / "repaired.tsv").read_text().splitlines() == [
        f"{FIRST}/{FIRST}_27.JPEG\tdecompressed: it was a gzip file",
        f"{SECOND}/{SECOND}_37.JPEG\tremoved 512 NUL bytes before it",
    ]
    assert (built / "skipped.tsv").read_text() == (
        f"{FIRST}/{FIRST}_37.JPEG\tnot an image (begins with b'<html>go')\n"
    )


def test_the_metadata_names_image_and_class(built):
    manifest = read_manifest(built)
    with tarfile.open(built / manifest.split("train").shards[0].file) as tar:
        for member in tar.getmembers():
            if member.name.endswith(".json"):
                meta = json.load(tar.extractfile(member))
                assert meta["source"].startswith(f"{meta['wnid']}/{meta['wnid']}_")


@pytest.mark.parametrize("form", sorted(set(FORMS_22K) - {"fall11_whole.tar"}))
@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_form_gives_the_same_bytes(forms, built, tmp_path, form, workers):
    assert run(forms / form, tmp_path / "set", "--workers", workers) == 0
    assert digests(tmp_path / "set") == digests(built)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_two_processes_give_the_same_bytes(forms, built, tmp_path):
    assert run(forms / "fall11_whole.tar", tmp_path / "set", "--workers", "2") == 0
    assert digests(tmp_path / "set") == digests(built)


@pytest.mark.parametrize("form", ["fall11_whole.tar", "winter21_whole.tar.gz"])
def test_an_interrupted_build_continues(forms, built, tmp_path, monkeypatch, form):
    written: list[str] = []
    write = pack._write_shard

    def interrupted(task, source, reader):
        if len(written) == 2:
            # What a kill leaves: a shard that is not whole.
            task.file.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(task.file.name)
        return write(task, source, reader)

    def counted(task, source, reader):
        written.append(task.file.name)
        return write(task, source, reader)

    monkeypatch.setattr(pack, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(forms / form, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    monkeypatch.setattr(pack, "_write_shard", counted)
    monkeypatch.setattr(spool, "_fill_spool", None)  # what was copied is used again
    assert run(forms / form, tmp_path / "set") == 0
    assert len(written) == len(set(written)) == len(read_manifest(built).split("train").shards)
    assert digests(tmp_path / "set") == digests(built)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def killed(call: str, count: int, *arguments: str) -> None:
    """Build in a process that is killed when it calls something of a module that many times."""
    code = (
        "import os, signal, sys\n"
        "from data_tools import build, pack, spool\n"
        "spool._SPOOL_FILE_BYTES = 20_000\n"
        "module, call = sys.argv[1].split('.')\n"
        "real, left = getattr(globals()[module], call), int(sys.argv[2])\n"
        "def deadly(*arguments):\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left == 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*arguments)\n"
        "setattr(globals()[module], call, deadly)\n"
        "build.main(sys.argv[3:])\n"
    )
    arguments = (call, str(count), "imagenet22k", *arguments, "--shard-mib", "0.05")
    command = [sys.executable, "-c", code, *arguments, "--workers", "1"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def test_a_killed_build_continues(forms, built, tmp_path):
    killed("pack._write_shard", 3, str(forms / "tars"), str(tmp_path / "set"))
    assert len(list((tmp_path / ".set.partial").glob("*.done"))) == 2
    assert run(forms / "tars", tmp_path / "set") == 0
    assert digests(tmp_path / "set") == digests(built)


def test_a_build_killed_while_it_copies_continues(forms, built, tmp_path, monkeypatch):
    archive = forms / "winter21_whole.tar.gz"
    killed("spool._write_all", 25, str(archive), str(tmp_path / "set"))
    finished = len(json.loads((tmp_path / ".set.spool" / "finished.json").read_text())["bytes"])
    assert finished > 3
    opened: list[str] = []
    monkeypatch.setattr(spool, "_SPOOL_FILE_BYTES", 20_000)
    monkeypatch.setattr(
        spool, "_write_all", lambda file, data: (opened.append(str(file.name)), file.write(data))
    )
    assert run(archive, tmp_path / "set") == 0
    assert digests(tmp_path / "set") == digests(built)
    assert min(opened).endswith(f"images-{finished:06d}.spool")
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_damage_to_finished_work_is_noticed(forms, built, tmp_path, monkeypatch):
    write, count = pack._write_shard, 0

    def interrupted(task, source, reader):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return write(task, source, reader)

    monkeypatch.setattr(pack, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(forms / "folders", tmp_path / "set")
    monkeypatch.undo()
    stage = tmp_path / ".set.partial"
    (stage / "imagenet22k-train-000000.tar").write_bytes(b"cut")
    (stage / "imagenet22k-train-000001.idx").unlink()
    with pytest.raises(DataError, match=r"interrupted build that differs in --seed; repeat"):
        run(forms / "folders", tmp_path / "set", "--seed", "7")
    assert run(forms / "folders", tmp_path / "set") == 0
    assert digests(tmp_path / "set") == digests(built)


def test_the_spool_can_lie_elsewhere(forms, built, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "thesis.txt").write_text("x")
    options = ("--spool", str(tmp_path / "scratch"))
    assert run(forms / "winter21_whole.tar.gz", tmp_path / "set", *options) == 0
    assert digests(tmp_path / "set") == digests(built)
    assert [entry.name for entry in (tmp_path / "scratch").iterdir()] == ["thesis.txt"]


def test_classes_that_are_large_enough_give_validation_images(tmp_path):
    content = {**CONTENT, "n90000099": {"n90000099_1.JPEG": PICTURES[0]}}
    write_tars(tmp_path / "tars", content)
    write_folders(tmp_path / "folders", content)
    for form in ("tars", "folders"):
        options = ("--eval-per-class", "1", "--seed", "1")
        assert run(tmp_path / form, tmp_path / f"{form}_set", *options) == 0
    manifest = read_manifest(tmp_path / "tars_set")
    assert manifest.split("validation").samples == 3
    assert manifest.split("train").samples == 33
    assert digests(tmp_path / "tars_set") == digests(tmp_path / "folders_set")
    for count in ("0", "2"):
        with pytest.raises(DataError, match=r"--eval-per-class: expected at least 1 and at most"):
            run(tmp_path / "tars", tmp_path / "more", "--eval-per-class", count)


def test_large_images_can_be_made_smaller(forms, tmp_path):
    assert run(forms / "tars", tmp_path / "set", "--max-side", "130") == 0
    manifest = read_manifest(tmp_path / "set")
    reader = ShardReader(tmp_path / "set", manifest.split("train").shards, 3)
    originals = {data for files in CONTENT.values() for data in files.values()}
    sides, untouched = [], 0
    for i in range(manifest.split("train").samples):
        data = reader.read(i).data
        header = raw.read_header(data)
        sides.append(max(header.height, header.width))
        untouched += data in originals
    assert max(sides) == 130
    assert 0 < untouched < len(sides)
    with pytest.raises(DataError, match="--max-side: expected at least 32, got 5"):
        run(forms / "tars", tmp_path / "other", "--max-side", "5")


def test_a_named_class_order_needs_its_classes(forms, tmp_path):
    with pytest.raises(DataError, match=r"swin_official: expected 21,841 synsets, .* has 3"):
        run(forms / "tars", tmp_path / "set", "--class-order", "swin_official")
    assert list(tmp_path.iterdir()) == []


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_the_wrong_class_and_other_files_are_left_out(tmp_path):
    good = PICTURES[0]
    files = {"n90000001_1.JPEG": good, "n90000002_1.JPEG": good, "README": b"", ".x": b""}
    (tmp_path / "a.tar").write_bytes(tar_of({"n90000001.tar": tar_of(files), "notes.txt": b"x"}))
    assert run(tmp_path / "a.tar", tmp_path / "set") == 0
    assert (tmp_path / "set" / "skipped.tsv").read_text().splitlines() == [
        "n90000001/README\tits name is not that of an image in a class",
        "n90000001/n90000002_1.JPEG\tits name says n90000002, it lies in n90000001",
        "notes.txt\tits name is not that of an image in a class",
    ]


def test_the_later_of_two_equal_names_is_taken(tmp_path):
    first, second = PICTURES[:2]
    inner = tar_of({"n90000001_1.JPEG": first}).rstrip(b"\0")
    inner += bytes(-len(inner) % 512) + tar_of({"n90000001_1.JPEG": second})
    (tmp_path / "a.tar").write_bytes(tar_of({"n90000001.tar": inner}))
    assert run(tmp_path / "a.tar", tmp_path / "set") == 0
    manifest = read_manifest(tmp_path / "set")
    assert ShardReader(tmp_path / "set", manifest.split("train").shards, 1).read(0).data == second
    assert (
        "n90000001/n90000001_1.JPEG\tanother of its name"
        in (tmp_path / "set" / "skipped.tsv").read_text()
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_archives_are_refused(tmp_path, compressed):
    write_fall11(tmp_path / "whole.tar", CONTENT)
    data = (tmp_path / "whole.tar").read_bytes()
    # Between two members: nothing but the missing end mark tells.
    cut = data[: data.rindex(f"{LAST}.tar".encode())]
    for name, part in (("mid.tar", data[: len(data) // 2]), ("edge.tar", cut)):
        stored = gzip.compress(part) if compressed else part
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(DataError, match=f"{name}.*cut short"):
            run(tmp_path / name, tmp_path / "set")
    if compressed:
        stored = gzip.compress(data)
        for end in (len(stored) // 2, len(stored) - 3):
            (tmp_path / "short.tar.gz").write_bytes(stored[:end])
            with pytest.raises(DataError, match=r"short\.tar\.gz: damaged or cut short"):
                run(tmp_path / "short.tar.gz", tmp_path / "set")
        broken = bytearray(stored)
        broken[len(stored) // 2] ^= 4
        (tmp_path / "bent.tar.gz").write_bytes(bytes(broken))
        with pytest.raises(DataError, match=r"bent\.tar\.gz.*(damaged|cut short|lead)"):
            run(tmp_path / "bent.tar.gz", tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file; fetch it again"),
        (b"\n<!DOCTYPE html><html>" + b" " * 900, r"a web page \(HTML\) and not an archive"),
        (b"x" * 2000, "no tar header at byte 0"),
        (bytes(10240), "no image in it; expected nXXXXXXXX_N.JPEG"),
    ],
)
def test_what_is_no_archive_is_named(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.tar: .*{message}"):
        run(tmp_path / "a.tar", tmp_path / "set")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]


def test_missing_and_foreign_directories_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: does not exist"):
        run(tmp_path / "nowhere", tmp_path / "set")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"photos: no synsets in it, it holds a\.jpg; expected"):
        run(tmp_path / "photos", tmp_path / "set")
    (tmp_path / "photos" / "n00000001").mkdir()
    (tmp_path / "photos" / "n00000002.tar").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds folders .* and tars .*expected one of the two"):
        run(tmp_path / "photos", tmp_path / "set")


def test_large_members_are_left_out_alike(forms, tmp_path, monkeypatch):
    sizes = sorted(len(data) for files in CONTENT.values() for data in files.values())
    for part in (raw, module, __import__("data_tools.archives", fromlist=["x"])):
        monkeypatch.setattr(part, "MAX_IMAGE_BYTES", sizes[-3], raising=False)
    for form in FORMS_22K:
        assert run(forms / form, tmp_path / form) == 0
        assert (tmp_path / form / "skipped.tsv").read_text().count("larger than") == 2
    assert len({json.dumps(digests(tmp_path / form), sort_keys=True) for form in FORMS_22K}) == 1


def test_a_gzip_bomb_in_the_place_of_an_image_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "MAX_IMAGE_BYTES", 100_000)
    files = {"n90000001_1.JPEG": gzip.compress(bytes(3_000_000))}
    files["n90000001_2.JPEG"] = PICTURES[0]
    (tmp_path / "n90000001.tar").write_bytes(tar_of(files))
    assert run(tmp_path, tmp_path.parent / f"{tmp_path.name}_set") == 0
    destination = tmp_path.parent / f"{tmp_path.name}_set"
    assert "a gzip file that grows beyond" in (destination / "skipped.tsv").read_text()


def test_positions_are_far_beyond_four_gigabytes(tmp_path):
    """A sparse file: offsets must not pass through 32 bits."""
    image = PICTURES[0]
    hole = 5 * 2**30
    info = tarfile.TarInfo("n90000001/n90000001_1.bin")
    info.size = hole
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(hole, 1)
        file.write(tar_of({"n90000001/n90000001_2.JPEG": image}))
    assert run(tmp_path / "a.tar", tmp_path / "set") == 0
    manifest = read_manifest(tmp_path / "set")
    sample = ShardReader(tmp_path / "set", manifest.split("train").shards, 1).read(0)
    assert sample.data == image


def test_a_listing_of_millions_is_small():
    """Bytes per image: 24 in the end, and less than 64 at any time."""
    wnids = [f"n{1_000_000 + 7 * i:08d}" for i in range(60)]
    per_class = 1_000
    tracemalloc.start()
    try:
        listing = Listing([], [])
        for wnid in wnids:
            collector = Collector()
            for i in range(per_class):
                name = f"{wnid}_{37 * i}.JPEG"
                collector.add(Home(wnid), Path("/x.tar"), name, 10**12 + i, 110_000)
            listing.images.extend(collector.flush().images)
        del collector
        tracemalloc.reset_peak()
        images, _ = module.assemble(listing, tuple(wnids), Path("/"))
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    count = len(images.labels)
    assert count == len(wnids) * per_class
    assert images.paths[:per_class] == sorted(
        f"{wnids[0]}/{wnids[0]}_{37 * i}.JPEG" for i in range(per_class)
    )
    assert now / count < 24
    assert peak / count < 64
