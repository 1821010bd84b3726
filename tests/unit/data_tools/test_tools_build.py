import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from image_folders import image_bytes, write_class, write_folder

from data_tools import pack, raw
from data_tools.build import main
from pretrain.data.manifest import check_shards, read_manifest
from pretrain.data.shards import ShardReader
from pretrain.errors import DataError


def run(source: Path, destination: Path, *options: str) -> int:
    arguments = ["--name", "tiny", "--shard-mib", "0.02", "--workers", "1", *options]
    return main(["imagefolder", str(source), str(destination), *arguments])


def contents(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("folder") / "images")


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory) -> Path:
    destination = tmp_path_factory.mktemp("built") / "set"
    assert run(folder, destination) == 0
    return destination


def test_the_manifest_tells_the_truth(built):
    manifest = read_manifest(built)
    assert manifest.edition == "tiny"
    assert manifest.classes == ("n01", "n02", "n03")
    assert manifest.split("train").samples == 24
    assert manifest.split("validation").samples == 9
    digests = contents(built)
    for split in manifest.splits.values():
        check_shards(manifest, split.name)
        for shard in split.shards:
            assert shard.sha256 == digests[shard.file]
            assert shard.index_sha256 == digests[shard.file.replace(".tar", ".idx")]
    names = {shard.file for split in manifest.splits.values() for shard in split.shards}
    assert len(names) >= 3
    assert set(digests) == {
        "manifest.json", "_info.json", *names, *(n.replace(".tar", ".idx") for n in names)
    }  # fmt: skip


def test_every_image_is_there_once_untouched_and_labelled(folder, built):
    manifest = read_manifest(built)
    for split, directory in (("train", "train"), ("validation", "val")):
        reader = ShardReader(built, manifest.split(split).shards, 3)
        packed = sorted(
            (manifest.classes[s.label], s.data)
            for s in map(reader.read, range(manifest.split(split).samples))
        )
        files = (folder / directory).glob("*/*")
        assert packed == sorted((file.parent.name, file.read_bytes()) for file in files)


def test_shards_are_plain_reproducible_tars(built):
    for path in built.glob("*.tar"):
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
        assert {member.type for member in members} == {tarfile.REGTYPE}
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
            (0, 0, 0, "", "", 0o444)
        }
        # No extended headers: every member's own header is the block before its bytes.
        gaps = {m.offset_data - m.offset for m in members}
        assert gaps == {512}


def test_webdataset_reads_them_unaided(folder, built):
    manifest = read_manifest(built)
    urls = [str(built / shard.file) for shard in manifest.split("train").shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 24
    assert len({sample["__key__"] for sample in samples}) == 24
    for sample in samples:
        assert sample["jpg"].dtype == np.uint8
        assert manifest.classes[sample["cls"]] == sample["json"]["wnid"]
        assert (folder / sample["json"]["source"]).is_file()


def test_the_bytes_depend_on_the_seed_and_not_on_the_processes(folder, built, tmp_path):
    assert run(folder, tmp_path / "two", "--workers", "2") == 0
    assert contents(tmp_path / "two") == contents(built)
    assert run(folder, tmp_path / "other", "--seed", "5") == 0
    assert contents(tmp_path / "other") != contents(built)


def test_classes_are_mixed_in_the_shards(tmp_path):
    for name in ("n01", "n02"):
        write_class(tmp_path / "images" / name, 100)
    assert run(tmp_path / "images", tmp_path / "set", "--shard-mib", "10") == 0
    manifest = read_manifest(tmp_path / "set")
    reader = ShardReader(manifest.root, manifest.split("train").shards, 2)
    labels = np.array([reader.read(i).label for i in range(200)])
    # 199 neighbours, each different with chance 1/2: 5 deviations are 35.
    assert 60 < np.count_nonzero(np.diff(labels)) < 140


def test_shards_are_near_the_size_asked_for(tmp_path):
    write_class(tmp_path / "images" / "n01", 300)
    assert run(tmp_path / "images", tmp_path / "set", "--shard-mib", "0.1") == 0
    shards = read_manifest(tmp_path / "set").split("train").shards
    assert len(shards) > 5
    for shard in shards:
        assert 0.08 < shard.bytes / 2**20 < 0.13


def test_a_carved_validation_split_is_packed(tmp_path):
    write_class(tmp_path / "images" / "n01", 5)
    write_class(tmp_path / "images" / "n02", 6)
    assert run(tmp_path / "images", tmp_path / "set", "--eval-per-class", "2") == 0
    manifest = read_manifest(tmp_path / "set")
    assert manifest.split("train").samples == 7
    assert manifest.split("validation").samples == 4


def test_content_decides_what_a_file_is(tmp_path, capsys):
    folder = tmp_path / "images" / "n01"
    write_class(folder, 2)
    (folder / "really.JPEG").write_bytes(image_bytes(1, "PNG"))
    (folder / "animated.jpg").write_bytes(image_bytes(2, "GIF"))
    (folder / "cmyk.JPEG").write_bytes(image_bytes(3, "JPEG", "CMYK"))
    (folder / "text.jpg").write_text("not an image")
    (folder / "cut.jpg").write_bytes(image_bytes(4)[:-40])
    (folder / "empty.jpg").write_bytes(b"")
    assert run(tmp_path / "images", tmp_path / "set") == 0
    manifest = read_manifest(tmp_path / "set")
    assert manifest.split("train").samples == 5
    with tarfile.open(tmp_path / "set" / manifest.split("train").shards[0].file) as tar:
        extensions = sorted(name.rpartition(".")[2] for name in tar.getnames())
    assert extensions == sorted(["cls"] * 5 + ["json"] * 5 + ["jpg"] * 3 + ["png", "gif"])
    lines = (tmp_path / "set" / "skipped.tsv").read_text().splitlines()
    assert sorted(line.partition("\t")[0] for line in lines) == [
        "n01/cut.jpg", "n01/empty.jpg", "n01/text.jpg"
    ]  # fmt: skip
    assert all(line.partition("\t")[2] for line in lines)
    printed = capsys.readouterr().out
    assert "left out 3 files" in printed
    assert "n01/text.jpg: not an image" in printed


def test_very_large_files_are_left_out(tmp_path, monkeypatch):
    write_class(tmp_path / "images" / "n01", 3)
    (tmp_path / "images" / "n01" / "big.jpg").write_bytes(image_bytes(1) + b"\0" * 4000)
    monkeypatch.setattr(raw, "MAX_IMAGE_BYTES", 3000)
    assert run(tmp_path / "images", tmp_path / "set") == 0
    assert "larger than" in (tmp_path / "set" / "skipped.tsv").read_text()


def test_sources_without_images_are_refused(tmp_path):
    folder = tmp_path / "images" / "n01"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"no usable image for split 'train'.*n01/a\.txt"):
        run(tmp_path / "images", tmp_path / "set")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["images"]


def test_classes_without_a_usable_image_are_named(tmp_path):
    write_class(tmp_path / "images" / "n01", 2)
    (tmp_path / "images" / "n02").mkdir()
    (tmp_path / "images" / "n02" / "a.jpg").write_text("text")
    with pytest.raises(DataError, match="1 classes without a usable training image, such as n02"):
        run(tmp_path / "images", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_full_disks_are_one_clear_line(folder, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack.os, "fsync", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        run(folder, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "a/b"], "--name: expected up to 61 letters"),
        (["--name", "a.b"], "--name"),
        (["--shard-mib", "0"], "--shard-mib: expected at least"),
        (["--shard-mib", "nan"], "--shard-mib: expected at least"),
        (["--seed", "-1"], "--seed: expected at least 0"),
        (["--workers", "0"], "--workers: expected at least 1"),
    ],
)
def test_senseless_options_are_refused(folder, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        run(folder, tmp_path / "set", *options)
    assert list(tmp_path.iterdir()) == []


def test_the_destination_must_be_free(folder, built):
    before = contents(built)
    with pytest.raises(DataError, match="expected a new or empty directory"):
        run(folder, built)
    assert contents(built) == before


def test_the_destination_must_not_lie_in_the_source(folder):
    with pytest.raises(DataError, match="lies inside the source"):
        run(folder, folder / "train" / "set")


def test_bad_input_ends_with_one_line_and_code_2(tmp_path):
    command = [sys.executable, "-m", "data_tools.build", "imagefolder", "nowhere", "set"]
    done = subprocess.run(
        [*command, "--name", "x"], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: nowhere: does not exist; expected a directory of class folders\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tool", ["build", "synthetic"])
def test_help_needs_no_torch(tool):
    code = (
        f"import sys, data_tools.{tool} as tool\n"
        "try: tool.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'webdataset'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "usage: python -m data_tools" in done.stdout


def test_info_and_manifest_agree(built):
    info = json.loads((built / "_info.json").read_text())
    manifest = read_manifest(built)
    for name, split in manifest.splits.items():
        assert info["splits"][name]["num_samples"] == split.samples
