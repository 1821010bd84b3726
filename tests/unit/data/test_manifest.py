import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.manifest import (
    Manifest,
    Shard,
    Split,
    check_shards,
    index_path,
    read_manifest,
    write_manifest,
)
from pretrain.errors import DataError

SHARD = Shard(file="a-train-000000.tar", samples=3, bytes=10240, sha256="00", index_sha256="11")


def a_manifest(root) -> Manifest:
    return Manifest(
        root=root,
        edition="a",
        classes=("n2", "n1"),
        class_names=("two", "n1"),
        splits={"train": Split("train", (SHARD, replace(SHARD, file="a-train-000001.tar")))},
    )


def edited(root, change) -> None:
    path = root / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_what_is_written_is_read(tmp_path):
    manifest = a_manifest(tmp_path)
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert read_manifest(str(tmp_path)).split("train").samples == 6
    assert manifest.split("train").bytes == 20480


def test_relative_directories_become_absolute(tmp_path, monkeypatch):
    write_manifest(a_manifest(tmp_path), tmp_path)
    monkeypatch.chdir(tmp_path)
    assert read_manifest(".").root == tmp_path


def test_the_info_file_has_what_timm_reads(tmp_path):
    write_manifest(a_manifest(tmp_path), tmp_path)
    train = json.loads((tmp_path / "_info.json").read_text())["splits"]["train"]
    assert train == {
        "name": "train",
        "num_samples": 6,
        "filenames": ["a-train-000000.tar", "a-train-000001.tar"],
        "shard_lengths": [3, 3],
    }


def test_missing_directory_names_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"{tmp_path}/nowhere: does not exist"):
        read_manifest("nowhere")


def test_missing_manifest_names_the_file_and_the_remedy(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path}/manifest.json: not found.*data_tools.build"):
        read_manifest(tmp_path)


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "set").write_text("")
    with pytest.raises(DataError, match="set: is a file"):
        read_manifest(tmp_path / "set")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"{}", b"null"])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=1), "version 1, expected 2"),
        (lambda d: d.update(edition=""), "edition"),
        (lambda d: d.update(classes=[]), "classes: expected a list"),
        (lambda d: d.update(classes=["n1", 2]), "classes: expected texts, got 2"),
        (lambda d: d.update(classes=["n1", "n1"]), "twice"),
        (lambda d: d.update(class_names=["one"]), "1 class_names for 2 classes"),
        (lambda d: d["classes"].reverse(), "class_order_sha256"),
        (lambda d: d["class_names"].reverse(), "its sha256 is not the digest"),
        (lambda d: d.pop("sha256"), "its sha256 is not the digest"),
        (lambda d: d.update(splits={}), "splits"),
        (lambda d: d.update(splits={"train": []}), r"splits\.train: expected a list"),
        (lambda d: d["splits"]["train"][0].pop("sha256"), r"splits\.train\[0\]: expected file"),
        (lambda d: d["splits"]["train"][1].update(samples=0), r"train\[1\]\.samples: .*got 0"),
        (lambda d: d["splits"]["train"][1].update(samples=True), "got True"),
        (lambda d: d["splits"]["train"][1].update(bytes=1.5), r"got 1\.5"),
        (lambda d: d["splits"]["train"][1].update(sha256=None), "sha256: expected text"),
        (lambda d: d["splits"]["train"][1].update(file="../x.tar"), "plain name"),
        (lambda d: d["splits"]["train"][1].update(file="x.zip"), "plain name"),
        (lambda d: d["splits"]["train"][1].update(file="a-train-000000.tar"), "twice"),
    ],
)
def test_contradictions_are_named(tmp_path, change, message):
    write_manifest(a_manifest(tmp_path), tmp_path)
    edited(tmp_path, change)
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


def test_a_contradiction_is_not_written(tmp_path):
    broken = replace(a_manifest(tmp_path), class_names=("one",))
    with pytest.raises(DataError, match="class_names"):
        write_manifest(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_splits_list_those_there_are(tmp_path):
    with pytest.raises(DataError, match="no split 'test'; there are: train"):
        a_manifest(tmp_path).split("test")


def test_fingerprints_follow_the_content_alone(tmp_path):
    manifest = a_manifest(tmp_path)
    same = replace(manifest, root=tmp_path / "elsewhere", class_names=("x", "y"))
    assert manifest.fingerprint("train") == same.fingerprint("train")
    reordered = replace(manifest, classes=("n1", "n2"))
    shorter = replace(manifest, splits={"train": Split("train", (SHARD,))})
    prints = {m.fingerprint("train") for m in (manifest, reordered, shorter)}
    assert len(prints) == 3


def test_whole_sets_pass(shard_set):
    check_shards(shard_set, "train")
    check_shards(shard_set, "validation")


def test_ranks_share_the_looking(own_shard_set, monkeypatch):
    """Thousands of ranks that each ask for thousands of files would halt the file system."""
    split = own_shard_set.split("train")
    stat, seen = Path.stat, []
    monkeypatch.setattr(Path, "stat", lambda self, **how: seen.append(self) or stat(self, **how))
    for rank in range(3):
        check_shards(own_shard_set, "train", rank, 3)
    root = own_shard_set.root
    every = [root / s.file for s in split.shards] + [index_path(root, s) for s in split.shards]
    assert sorted(seen) == sorted(every)


def test_every_disagreement_is_listed(own_shard_set):
    root = own_shard_set.root
    first, second, third, *_ = own_shard_set.split("train").shards
    (root / first.file).unlink()
    with (root / second.file).open("ab") as file:
        file.write(b"x")
    index_path(root, third).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        check_shards(own_shard_set, "train")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert f"{root / first.file}: No such file" in lines[0]
    assert f"{second.bytes + 1:,} bytes, the manifest says {second.bytes:,}" in lines[1]
    assert f"{index_path(root, third)}: 0 bytes" in lines[2]


def test_long_lists_of_disagreements_are_cut(tmp_path):
    shards = tuple(replace(SHARD, file=f"{i}.tar") for i in range(100))
    manifest = replace(a_manifest(tmp_path), splits={"train": Split("train", shards)})
    with pytest.raises(DataError) as caught:
        check_shards(manifest, "train")
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert "180 more" in lines[-1]


def test_the_pure_parts_import_neither_torch_nor_numpy():
    code = (
        "import sys, pretrain.data.manifest; assert 'numpy' not in sys.modules;"
        "import pretrain.data.order, pretrain.data.shards, pretrain.data.decode;"
        "assert 'torch' not in sys.modules and 'webdataset' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_index_is_plain_for_numpy(shard_set):
    from pretrain.data.shards import INDEX_DTYPE

    shard = shard_set.split("train").shards[0]
    records = np.fromfile(index_path(shard_set.root, shard), INDEX_DTYPE)
    assert len(records) == shard.samples


def test_unreadable_files_are_listed(own_shard_set, monkeypatch):
    shard = own_shard_set.root / own_shard_set.split("train").shards[0].file
    access = os.access  # the superuser may read everything, so the answer is made up
    monkeypatch.setattr(os, "access", lambda path, mode: path != shard and access(path, mode))
    with pytest.raises(DataError, match=f"{shard}: not readable by you"):
        check_shards(own_shard_set, "train")
