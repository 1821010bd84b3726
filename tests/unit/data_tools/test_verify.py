import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from image_folders import write_class, write_folder

from data_tools.build import build
from data_tools.sources import imagefolder
from data_tools.tar_walk import walk
from data_tools.verify import _check_shard, main, verify
from pretrain.data.manifest import Manifest, index_path, read_manifest, write_manifest
from pretrain.data.shards import INDEX_DTYPE
from pretrain.errors import DataError

FLIPS = 400


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Manifest:
    root = tmp_path_factory.mktemp("verify")
    source = imagefolder(
        write_folder(root / "images"), class_names_file=None, eval_per_class=None, seed=0
    )
    build(source, root / "set", name="tiny", shard_mib=0.02, seed=0, workers=1)
    return read_manifest(root / "set")


@pytest.fixture
def own(built, tmp_path) -> Manifest:
    """A copy, to be damaged."""
    shutil.copytree(built.root, tmp_path / "set")
    return read_manifest(tmp_path / "set")


def faults(manifest: Manifest, decode: bool = False) -> list[str]:
    return [str(item) for item in verify(manifest.root, decode=decode, workers=1).damage]


def is_noticed(manifest: Manifest, file: str) -> bool:
    """Whether damage in one file is found, looking only where that file is looked at."""
    if not file.endswith((".tar", ".idx")):
        return bool(faults(manifest))
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    shard = next(s for s in shards if file in (s.file, index_path(manifest.root, s).name))
    return bool(_check_shard(manifest.root, shard, len(manifest.classes), False))


def test_a_whole_set_passes(built, capsys):
    assert main([str(built.root), "--decode", "--workers", "2"]) == 0
    samples = sum(split.samples for split in built.splits.values())
    assert f"{samples} samples hashed and walked and decoded" in capsys.readouterr().out


def test_every_flipped_bit_is_found(own):
    """In every file of the set; where a shard's bytes are many, most flips fall there."""
    random = np.random.default_rng(0)
    files = sorted(path for path in own.root.iterdir())
    sizes = np.array([path.stat().st_size for path in files])
    chosen = [*range(len(files)), *random.choice(len(files), FLIPS, p=sizes / sizes.sum())]
    for number in chosen:
        path = files[number]
        whole = path.read_bytes()
        place, bit = int(random.integers(len(whole))), int(random.integers(8))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        assert is_noticed(own, path.name), f"{path.name}: byte {place}, bit {bit}"
        path.write_bytes(whole)
    assert not faults(own)


@pytest.fixture
def smallest(tmp_path) -> Manifest:
    """One sample: the whole of it can be tried."""
    write_class(tmp_path / "images" / "n01", 1)
    source = imagefolder(tmp_path / "images", class_names_file=None, eval_per_class=None, seed=0)
    build(source, tmp_path / "set", name="one", shard_mib=1, seed=0, workers=1)
    return read_manifest(tmp_path / "set")


def test_no_bit_of_a_shard_can_flip_unnoticed(smallest):
    """Every bit of the members' headers and of the index, a bit of every byte elsewhere."""
    shard = smallest.split("train").shards[0]
    with (smallest.root / shard.file).open("rb") as file:
        headers = {
            offset for m in walk(file.fileno()) for offset in range(m.offset - 512, m.offset)
        }
    for name in (shard.file, index_path(smallest.root, shard).name):
        path = smallest.root / name
        damaged = bytearray(path.read_bytes())
        with path.open("r+b", buffering=0) as file:
            for place, byte in enumerate(damaged):
                every = place in headers or name != shard.file
                for bit in range(8) if every else (place % 8,):
                    os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)
                    found = _check_shard(smallest.root, shard, 1, False)
                    assert found, f"{name}: byte {place}, bit {bit}"
                os.pwrite(file.fileno(), bytes([byte]), place)
    assert not faults(smallest)


def test_no_length_of_a_shard_can_pass_for_its_own(smallest):
    shard = smallest.split("train").shards[0]
    for name in (shard.file, index_path(smallest.root, shard).name):
        path = smallest.root / name
        whole = path.read_bytes()
        for length in range(len(whole) - 1, -1, -1):
            os.truncate(path, length)
            found = _check_shard(smallest.root, shard, 1, False)
            assert any(f"{length:,} bytes, the manifest says" in str(item) for item in found)
        path.write_bytes(whole + bytes(512))
        assert _check_shard(smallest.root, shard, 1, False)
        path.write_bytes(whole)
    assert not faults(smallest)


def test_every_bit_of_the_manifest_counts(own):
    path = own.root / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            read_manifest(own.root)


def test_every_truncation_is_found(own):
    """Of each kind of file: to nothing, by a byte, in a header, in data, on each boundary."""
    shard = own.split("train").shards[0]
    with (own.root / shard.file).open("rb") as file:
        members = list(walk(file.fileno()))
    boundaries = [member.offset - 512 for member in members]
    inside = [members[1].offset - 500, members[1].offset, members[1].offset + 3]
    ends = [shard.bytes - 1, shard.bytes - 512, shard.bytes - 1024, boundaries[-1] + 512 + 511]
    cuts = {shard.file: [0, 1, *boundaries, *inside, *ends]}
    records = shard.samples * INDEX_DTYPE.itemsize
    cuts[index_path(own.root, shard).name] = [0, 1, INDEX_DTYPE.itemsize, records - 24, records - 1]
    for name in ("manifest.json", "_info.json"):
        size = (own.root / name).stat().st_size
        cuts[name] = [0, 1, size // 2, size - 2]
    for name, lengths in cuts.items():
        whole = (own.root / name).read_bytes()
        for length in lengths:
            (own.root / name).write_bytes(whole[:length])
            assert is_noticed(own, name), f"{name} cut to {length} bytes"
        (own.root / name).write_bytes(whole)
    assert not faults(own)


def test_missing_files_are_found(own):
    shard, other, *_ = own.split("train").shards
    (own.root / shard.file).unlink()
    index_path(own.root, other).unlink()
    (own.root / "_info.json").unlink()
    found = "\n".join(faults(own))
    assert f"{shard.file}: cannot be read: No such file" in found
    assert f"{index_path(own.root, other).name}: cannot be read: No such file" in found
    assert "_info.json: cannot be read: No such file" in found


def repacked(manifest: Manifest, change) -> Manifest:
    """The set with its first shard rewritten and digests that agree; the index is left alone."""
    shard = manifest.split("train").shards[0]
    path = manifest.root / shard.file
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = path.read_bytes()
    new = replace(shard, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    train = replace(manifest.split("train"), shards=(new, *manifest.split("train").shards[1:]))
    changed = replace(manifest, splits={**manifest.splits, "train": train})
    write_manifest(changed, manifest.root)
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [(m[0][0], b"2" if m[0][1] == b"1" else b"1"), *m[1:]], "the index says"),
        (lambda m: m[:-3], r"samples, its index has"),
        (lambda m: [*m, ("new.cls", b"0"), ("new.jpg", b"x")], "new: not in the index"),
        (lambda m: [("x.cls", m[0][1]), ("x.jpg", m[1][1]), *m[2:]], "name, place or size"),
        (lambda m: [m[1], m[0], *m[2:]], "name, place or size"),
        (lambda m: m[1:], "expected a label and one image"),
        (lambda m: [m[0], (m[1][0], m[1][1][:-1] + b"?"), *m[2:]], "not those that were indexed"),
        (lambda m: [m[0], m[0], *m[1:]], "two members 'cls'"),
    ],
)
def test_a_shard_that_contradicts_its_index_is_found(own, change, message):
    """Digests agree here: this is what a faulty builder or a wrong index would leave."""
    repacked(own, change)
    found = "\n".join(faults(own))
    assert "sha256" not in found
    assert re.search(message, found), found


def test_images_that_cannot_be_decoded_are_found_only_when_asked(tmp_path):
    root = write_folder(tmp_path / "images")
    source = imagefolder(root, class_names_file=None, eval_per_class=None, seed=0)
    build(source, tmp_path / "set", name="tiny", shard_mib=1, seed=0, workers=1)
    manifest = read_manifest(tmp_path / "set")
    shard = manifest.split("train").shards[0]
    path = manifest.root / shard.file
    records = np.fromfile(index_path(manifest.root, shard), INDEX_DTYPE)
    data = bytearray(path.read_bytes())
    start, size = int(records[2]["offset"]), int(records[2]["bytes"])
    data[start : start + 4] = b"oops"
    path.write_bytes(data)
    records["data_crc32"][2] = zlib.crc32(data[start : start + size])
    records.tofile(index_path(manifest.root, shard))
    new = replace(
        shard,
        sha256=hashlib.sha256(data).hexdigest(),
        index_sha256=hashlib.sha256(records.tobytes()).hexdigest(),
    )
    train = replace(manifest.split("train"), shards=(new,))
    write_manifest(replace(manifest, splits={**manifest.splits, "train": train}), manifest.root)
    assert not faults(manifest)
    (found,) = faults(manifest, decode=True)
    assert f"{shard.file}: 000000_" in found
    assert "cannot be decoded: not an image" in found


def test_the_command_says_where_and_exits_one(own, capsys, tmp_path):
    shard = own.split("train").shards[1]
    path = own.root / shard.file
    data = bytearray(path.read_bytes())
    data[512 * 3 + 600] ^= 4
    path.write_bytes(data)
    report = tmp_path / "report.json"
    assert main([str(own.root), "--workers", "1", "--report", str(report)]) == 1
    out = capsys.readouterr().out
    assert f"damaged: {shard.file}: its sha256 is not the manifest's" in out
    assert "DAMAGED: 2 faults in 1 files" in out
    document = json.loads(report.read_text())
    assert {item["file"] for item in document["damage"]} == {shard.file}
    assert document["shards"] == sum(len(split.shards) for split in own.splits.values())


def web_page(path):
    path.write_text("<!doctype html><title>Sign in</title>")


def empty_tar(path):
    tarfile.open(path, "w").close()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def endless(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "cannot be read: No such file or directory"),
        (web_page, "37 bytes, the manifest says {bytes}; a web page or an error message saved as"),
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes(), mtime=0)),
         "the manifest says {bytes}; gzip-compressed, expected a plain tar"),
        (empty_tar, "10,240 bytes, the manifest says {bytes}; 0 samples, its index has "),
        (lambda path: path.write_bytes(b""), "0 bytes, the manifest says {bytes}; empty file"),
        (lambda path: os.truncate(path, 5000),
         "5,000 bytes, the manifest says {bytes}; cut short: it ends inside"),
        (pipe, "it is no file"),
        (endless, "it is no file"),
        (folder, "it is no file"),
    ],
)  # fmt: skip
def test_a_fault_of_a_file_is_one_line_and_never_hangs(own, capsys, damage, said):
    shard = own.split("train").shards[0]
    damage(own.root / shard.file)
    assert main([str(own.root), "--workers", "1"]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"damaged: {shard.file}: ")
    assert said.format(bytes=f"{shard.bytes:,}") in first
    assert "DAMAGED: 1 faults in 1 files; copy those files again" in last


def test_an_index_that_is_stale_or_missing(own, capsys):
    one, two, *_ = own.split("train").shards
    index_path(own.root, one).write_bytes(index_path(own.root, two).read_bytes())
    index_path(own.root, two).unlink()
    assert main([str(own.root), "--workers", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"damaged: {index_path(own.root, one).name}: ")
    assert (
        lines[1]
        == f"damaged: {index_path(own.root, two).name}: cannot be read: No such file or directory"
    )


def test_a_shard_in_anothers_place_is_a_few_lines(own, capsys):
    """Not one for each of its samples."""
    shards = own.split("train").shards
    one = next(s for s in shards if s.samples > 5)
    other = next(s for s in shards if s is not one and s.samples > 5)
    (own.root / one.file).write_bytes((own.root / other.file).read_bytes())
    assert main([str(own.root), "--workers", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"damaged: {one.file}: ") for line in lines) == 5
    assert "more (--report FILE lists all)" in lines[-2]


def test_shards_the_manifest_does_not_name_are_mentioned(own, capsys):
    shard = own.split("train").shards[0]
    (own.root / "tiny-train-000099.tar").write_bytes((own.root / shard.file).read_bytes())
    assert main([str(own.root), "--workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "not in the manifest, never read: tiny-train-000099.tar"
    assert "whole: " in lines[1]


def test_a_damaged_manifest_exits_one_and_an_absent_one_two(own, tmp_path, capsys):
    (own.root / "manifest.json").write_text("{}")
    assert main([str(own.root)]) == 1
    assert "manifest.json: damaged" in capsys.readouterr().out
    with pytest.raises(DataError, match="does not exist"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(DataError, match="not found"):
        main([str(tmp_path)])
    with pytest.raises(DataError, match="--workers"):
        main([str(own.root), "--workers", "0"])
