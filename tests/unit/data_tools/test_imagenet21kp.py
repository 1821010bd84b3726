import gzip
import json
from pathlib import Path

import pytest
from raw_sets import build, digests, write_forms

from data_tools.build import main
from data_tools.raw_forms import write_fall11
from data_tools.raw_forms_21kp import FORMS_21KP, Resized, resized, write_archive
from pretrain.data.manifest import read_manifest
from pretrain.data.shards import ShardReader
from pretrain.errors import DataError

CONTENT = resized(8, seed=5, classes=4)
TRAIN, VAL = (CONTENT.folders[f"imagenet21k_{split}"] for split in ("train", "val"))


def run(source: Path, destination: Path, *options: str) -> int:
    return build("imagenet21kp", source, destination, "--shard-mib", "0.03", *options)


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Path:
    return write_forms(tmp_path_factory.mktemp("forms"), FORMS_21KP, CONTENT)


@pytest.fixture(scope="module")
def built(forms, tmp_path_factory) -> Path:
    destination = tmp_path_factory.mktemp("built") / "set"
    assert run(forms / "imagenet21k_resized", destination) == 0
    return destination


@pytest.mark.parametrize("form", ["imagenet21k_resized.tar", "imagenet21k_resized.tar.gz"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_archive_and_folders_give_the_same_bytes(forms, built, tmp_path, form, workers):
    assert run(forms / form, tmp_path / "set", "--workers", workers) == 0
    assert digests(tmp_path / "set") == digests(built)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_each_folder_is_its_split_and_small_classes_are_none(built):
    manifest = read_manifest(built)
    assert manifest.classes == tuple(sorted(TRAIN))
    for split, content in (("train", TRAIN), ("validation", VAL)):
        reader = ShardReader(built, manifest.split(split).shards, len(manifest.classes))
        stored = {reader.read(i).data for i in range(manifest.split(split).samples)}
        plain = {data for files in content.values() for data in files.values()}
        plain = {gzip.decompress(d) if d[:1] == b"\x1f" else d.lstrip(b"\0") for d in plain}
        assert stored == {data for data in plain if not data.startswith(b"<html>")}


def test_small_classes_are_not_even_spooled(forms, tmp_path):
    from data_tools.spool import list_gzip

    archive = forms / "imagenet21k_resized.tar.gz"
    splits = ("imagenet21k_train", "imagenet21k_val")
    list_gzip(archive, tmp_path / "some", splits)
    list_gzip(archive, tmp_path / "all", (*splits, "imagenet21k_small_classes"))
    some, every = (
        sum(path.stat().st_size for path in (tmp_path / name).glob("images-*"))
        for name in ("some", "all")
    )
    (small,) = CONTENT.folders["imagenet21k_small_classes"].values()
    assert every - some == sum(map(len, small.values()))


def test_a_spool_of_other_folders_is_not_used(forms, built, tmp_path):
    from data_tools.spool import list_gzip

    list_gzip(forms / "imagenet21k_resized.tar.gz", tmp_path / "spool", ("imagenet21k_val",))
    options = ("--spool", str(tmp_path / "spool"))
    assert run(forms / "imagenet21k_resized.tar.gz", tmp_path / "set", *options) == 0
    assert digests(tmp_path / "set") == digests(built)
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("imagenet21k_val", r"a\.tar: no image in .*imagenet21k_val"),
        ("imagenet21k_train", r"a\.tar: no image in .*imagenet21k_train"),
    ],
)
def test_archives_without_a_split_are_refused(tmp_path, left_out, message):
    folders = {name: files for name, files in CONTENT.folders.items() if name != left_out}
    write_archive(tmp_path / "a.tar", Resized(folders))
    with pytest.raises(DataError, match=message):
        run(tmp_path / "a.tar", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_other_archives_and_directories_are_refused(tmp_path):
    write_fall11(tmp_path / "fall11_whole.tar", TRAIN)
    with pytest.raises(DataError, match=r"no image in .*imagenet21k_train"):
        run(tmp_path / "fall11_whole.tar", tmp_path / "set")
    with pytest.raises(DataError, match=r"expected imagenet21k_resized\.tar\.gz, or a directory"):
        run(tmp_path, tmp_path.parent / "set")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "fall11_whole.tar").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut\.tar: cut short"):
        run(tmp_path / "cut.tar", tmp_path / "set")


@pytest.mark.parametrize("form", ["imagenet21k_resized.tar", "imagenet21k_resized.tar.gz"])
def test_it_is_not_taken_for_imagenet22k(forms, tmp_path, form):
    """Its training and validation images would be thrown together."""
    with pytest.raises(DataError, match=r"holds imagenet21k_\w+/, so it is ImageNet-21K-P"):
        main(["imagenet22k", str(forms / form), str(tmp_path / "set"), "--workers", "1"])
    assert not (tmp_path / "set").exists()


def test_validation_classes_without_training_are_refused(tmp_path):
    folders = dict(CONTENT.folders)
    folders["imagenet21k_val"] = folders["imagenet21k_small_classes"]
    write_archive(tmp_path / "a.tar", Resized(folders))
    with pytest.raises(DataError, match="1 classes of the validation images have no training"):
        run(tmp_path / "a.tar", tmp_path / "set")


def test_files_beside_the_classes_are_told_in_archives(tmp_path):
    folders = {name: dict(files) for name, files in CONTENT.folders.items()}
    folders["imagenet21k_train"]["notes"] = {"n90000104_1.JPEG": b"x"}
    write_archive(tmp_path / "a.tar", Resized(folders))
    assert run(tmp_path / "a.tar", tmp_path / "set") == 0
    assert (
        "imagenet21k_resized/imagenet21k_train/notes/n90000104_1.JPEG\tits name is not that"
        in (tmp_path / "set" / "skipped.tsv").read_text()
    )
    assert json.loads((tmp_path / "set" / "_info.json").read_text())["name"] == "imagenet21kp"
