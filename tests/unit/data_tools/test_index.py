import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from image_folders import image_bytes

from data_tools import build, index
from data_tools.verify import verify
from pretrain.data.manifest import read_manifest
from pretrain.data.shards import ShardReader
from pretrain.errors import DataError

WNIDS = ("n00000003", "n00000001", "n00000002")
"""Not sorted: the order is that of the labels."""


def sample(number: int, label: int | None = None) -> dict[str, bytes]:
    """The members of one sample in timm's form."""
    true_label = number % len(WNIDS)
    key = f"{WNIDS[true_label]}_{number}"
    shown = true_label if label is None else label
    return {
        f"{key}.cls": b"%d" % shown,
        f"{key}.jpg": image_bytes(number),
        f"{key}.json": b'{"filename": "x"}',
    }


def write_tar(path: Path, members: dict[str, bytes], tar_format=tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.25 if tar_format == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(data))


def members(first: int, count: int = 6) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for number in range(first, first + count):
        found |= sample(number)
    return found


@pytest.fixture
def source(tmp_path) -> Path:
    """Two training shards and one for validation, as timm names them."""
    for number, name in enumerate(("train-0000", "train-0001", "validation-0000")):
        write_tar(tmp_path / "src" / f"imagenet22k-{name}.tar", members(10 * number))
    return tmp_path / "src"


def run(source: Path, *options: str) -> int:
    destination = str(source.parent / "set")
    return index.main([str(source), destination, "--name", "wds", "--workers", "1", *options])


def refusal(source: Path, *options: str) -> str:
    with pytest.raises(DataError) as caught:
        run(source, *options)
    assert not (source.parent / "set").exists()
    return str(caught.value)


def classes_file(source: Path, *ids: str) -> list[str]:
    path = source.parent / "classes.txt"
    path.write_text("".join(f"{item}\n" for item in ids))
    return ["--classes", str(path)]


@pytest.mark.parametrize(
    "tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
)
def test_foreign_shards_are_read_as_they_are(source, tar_format):
    for path in source.glob("*-train-*.tar"):
        write_tar(path, members(10 * int(path.stem[-4:])), tar_format)
    before = {path: path.read_bytes() for path in source.iterdir()}
    assert run(source) == 0
    manifest = read_manifest(source.parent / "set")
    assert manifest.classes == WNIDS
    assert {name: split.samples for name, split in manifest.splits.items()} == {
        "train": 12, "validation": 6
    }  # fmt: skip
    shards = manifest.split("train").shards
    reader = ShardReader(manifest.root, shards, len(manifest.classes))
    numbers = [*range(6), *range(10, 16)]
    for sample_id, number in enumerate(numbers):
        found = reader.read(sample_id)
        assert found.data == image_bytes(number)
        assert found.label == number % 3
        assert found.key == f"{WNIDS[number % 3]}_{number}"
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    assert verify(manifest.root, decode=True, workers=1).damage == ()


def test_build_index_is_the_same_command(source):
    destination = source.parent / "set"
    assert build.main(["index", str(source), str(destination), "--name", "wds"]) == 0
    assert read_manifest(destination).edition == "wds"


def test_a_class_list_gives_ids_and_names(source):
    ids = [f"{wnid}\tname {i}" for i, wnid in enumerate(WNIDS)]
    assert run(source, *classes_file(source, *ids, "n00000009")) == 0
    manifest = read_manifest(source.parent / "set")
    assert manifest.classes == (*WNIDS, "n00000009")
    assert manifest.class_names == ("name 0", "name 1", "name 2", "n00000009")


def test_a_gap_in_the_numbers(source):
    write_tar(source / "imagenet22k-train-0004.tar", members(50))
    message = refusal(source)
    assert "gap in the numbers of imagenet22k-train-*.tar: 2 of 5 missing (2, 3)" in message


def test_lost_first_shards_are_a_gap(source):
    (source / "imagenet22k-train-0000.tar").unlink()
    (source / "imagenet22k-train-0001.tar").rename(source / "imagenet22k-train-0002.tar")
    assert "gap in the numbers" in refusal(source)


def test_html_saved_as_tar(source):
    (source / "imagenet22k-train-0001.tar").write_text("<!DOCTYPE html><title>Sign in</title>")
    message = refusal(source)
    assert "imagenet22k-train-0001.tar: a web page or an error message saved as .tar" in message
    assert message.count("fetch it again") == 1


def test_gzip_named_tar(source):
    path = source / "imagenet22k-train-0001.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    message = refusal(source)
    assert "train-0001.tar: gzip-compressed, expected a plain tar: unpack it with gunzip" in message
    assert "fetch" not in message


def test_nothing_but_gzips(source):
    for path in source.iterdir():
        path.rename(path.with_suffix(".tar.gz"))
    message = refusal(source)
    assert "tar.gz: unpack with gunzip first" in message


def test_an_empty_tar_and_an_empty_file(source):
    write_tar(source / "imagenet22k-train-0001.tar", {})
    (source / "imagenet22k-train-0000.tar").write_bytes(b"")
    message = refusal(source)
    assert "train-0001.tar: an empty tar: no sample in it" in message
    assert "train-0000.tar: empty file" in message


def test_links_are_refused(source):
    with tarfile.open(source / "imagenet22k-train-0001.tar", "w") as tar:
        link = tarfile.TarInfo("n00000001_1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    message = refusal(source)
    assert "n00000001_1.jpg' is a symbolic link; only files are expected" in message
    assert "fetch" not in message


@pytest.mark.parametrize("kept", [512 * 9 + 100, 512 * 8])
def test_a_truncated_tar(source, kept):
    path = source / "imagenet22k-train-0001.tar"
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(source)
    assert "train-0001.tar: cut short" in message
    assert "\n" not in message


def test_a_tar_cut_between_two_samples(source):
    """Which tar readers take for its end."""
    path = source / "imagenet22k-train-0001.tar"
    with tarfile.open(path) as tar:
        fourth = tar.getmembers()[9]
    path.write_bytes(path.read_bytes()[: fourth.offset])
    assert "train-0001.tar: cut short: it ends at byte" in refusal(source)


def test_a_missing_label(source):
    broken = members(10)
    del broken["n00000002_11.cls"]
    write_tar(source / "imagenet22k-train-0001.tar", broken)
    assert "n00000002_11: .cls is missing, found jpg, json" in refusal(source)


def test_a_missing_image(source):
    broken = members(10)
    del broken["n00000002_11.jpg"]
    write_tar(source / "imagenet22k-train-0001.tar", broken)
    assert "n00000002_11: expected one image, found cls, json" in refusal(source)


@pytest.mark.parametrize("text", [b"-1", b"cat", b"", b"1.0", b"9" * 30])
def test_labels_that_are_none(source, text):
    write_tar(source / "imagenet22k-train-0001.tar", {**members(10), "n00000002_11.cls": text})
    assert "n00000002_11: .cls: expected a label as decimal number" in refusal(source)


def test_a_label_outside_the_class_list(source):
    message = refusal(source, *classes_file(source, *WNIDS[:2]))
    assert "imagenet22k-train-0000.tar: label 2, expected 0 to 1; 6 samples in 3 shards" in message
    assert "give the list they were made with" in message
    assert "\n" not in message


def test_a_class_list_in_another_order_is_one_line(source):
    message = refusal(source, *classes_file(source, WNIDS[1], WNIDS[2], WNIDS[0]))
    assert "the class list is not in the order of these labels: 9 of 9 classes" in message
    assert "n00000003_0: it says n00000003, its label 0 is n00000001 in the class list" in message
    assert "\n" not in message


def test_keys_that_disagree_with_each_other(source):
    write_tar(source / "imagenet22k-train-0001.tar", {**members(10), **sample(12, label=1)})
    assert "label 1 disagrees with the WordNet ids" in refusal(source)
    message = refusal(source, *classes_file(source, *WNIDS))
    assert "train-0001.tar: n00000003_12: it says n00000003, its label 1 is n00000001" in message
    assert "the sample is mislabelled" in message
    assert "\n" not in message


def anonymous(first: int, **metadata: object) -> dict[str, bytes]:
    """Samples whose keys say nothing."""
    found: dict[str, bytes] = {}
    for number in range(first, first + 6):
        label = number % len(WNIDS)
        found |= {f"{number:06d}.cls": b"%d" % label, f"{number:06d}.jpg": image_bytes(number)}
        text = {"wnid": WNIDS[label], **metadata}
        found[f"{number:06d}.json"] = json.dumps(text).encode()
    return found


def test_metadata_names_classes_where_keys_do_not(source):
    for number, path in enumerate(sorted(source.iterdir())):
        write_tar(path, anonymous(10 * number))
    assert run(source) == 0
    assert read_manifest(source.parent / "set").classes == WNIDS


def test_metadata_that_disagrees(source):
    for number, path in enumerate(sorted(source.iterdir())):
        write_tar(path, anonymous(10 * number))
    message = refusal(source, *classes_file(source, *reversed(WNIDS)))
    assert "the class list is not in the order of these labels" in message
    write_tar(source / "imagenet22k-train-0001.tar", {**members(10), **{
        "n00000003_12.json": b'{"wnid": "n00000002"}'}})  # fmt: skip
    message = refusal(source, *classes_file(source, *WNIDS))
    assert "n00000003_12: its key says n00000003, its json says n00000002" in message


@pytest.mark.parametrize("text", [b"", b"[" * 60_000, b"[1]", b'{"wnid": 7}', b'{"wnid": "cat"}'])
def test_metadata_that_says_nothing_harms_nobody(source, text):
    write_tar(source / "imagenet22k-train-0001.tar", {**members(10), "n00000003_12.json": text})
    assert run(source) == 0


def test_labels_without_a_class(source):
    write_tar(source / "imagenet22k-train-0001.tar", {"a.cls": b"7", "a.jpg": image_bytes(1)})
    message = refusal(source)
    assert "nothing says which class label 3 is (5 such labels)" in message
    assert "--classes" in message


@pytest.mark.parametrize("form", ["{id}", "{id}\tname {i}", "{id} name {i}", " {id}\t name {i} "])
def test_class_lists_as_people_have_them(source, form):
    lines = [form.format(id=wnid, i=i) for i, wnid in enumerate(WNIDS)]
    assert run(source, *classes_file(source, "", *lines, "")) == 0
    manifest = read_manifest(source.parent / "set")
    assert manifest.classes == WNIDS
    named = "name" in form
    assert manifest.class_names == tuple(f"name {i}" if named else w for i, w in enumerate(WNIDS))


def test_class_lists_that_are_none(source, tmp_path):
    assert "classes.txt: expected one class id a line" in refusal(source, *classes_file(source))
    twice = classes_file(source, *WNIDS, WNIDS[0])
    assert "classes.txt: expected one class id a line, each once" in refusal(source, *twice)
    nowhere = refusal(source, "--classes", str(tmp_path / "nowhere"))
    assert nowhere == f"{tmp_path / 'nowhere'}: cannot be read: No such file or directory"
    (tmp_path / "image.txt").write_bytes(image_bytes(1))
    assert "expected text in UTF-8" in refusal(source, "--classes", str(tmp_path / "image.txt"))


def test_the_same_name_in_two_folders(source):
    write_tar(source / "more" / "imagenet22k-train-0001.tar", members(60))
    message = refusal(source)
    assert "more/imagenet22k-train-0001.tar" in message
    assert "has the same name as" in message


def test_members_that_do_not_follow_each_other(source):
    first, second = list(sample(10).items()), list(sample(11).items())
    mixed = dict([*first[:2], *second, *first[2:]])
    write_tar(source / "imagenet22k-train-0001.tar", mixed)
    assert "n00000001_10: its members do not follow each other" in refusal(source)


def test_sources_that_are_none(source, tmp_path):
    assert "expected a directory" in refusal(source / "imagenet22k-train-0000.tar")
    (tmp_path / "empty").mkdir()
    assert "expected .tar files in it, found none" in refusal(tmp_path / "empty")
    write_tar(source / "one.tar", members(0))
    assert "expected a name that ends in a number" in refusal(source)


def test_splits_that_cannot_be_told(source):
    write_tar(source / "imagenet22k-0000.tar", members(0))
    assert "cannot tell which split imagenet22k-*.tar are" in refusal(source)


@pytest.mark.parametrize("other", ["imagenet12k-test", "imagenet12k-train", "other"])
def test_two_data_sets_in_one_place(source, other):
    """Their labels may mean different classes even where no key tells."""
    write_tar(source / "b" / f"{other}-0000.tar", members(0))
    message = refusal(source)
    assert "named like two data sets, whose labels may mean different classes" in message


def test_a_shard_set_needs_no_index(source):
    assert run(source) == 0
    made = source.parent / "set"
    with pytest.raises(DataError, match="set: is a shard set already, with a class list of its"):
        index.main([str(made), str(source.parent / "again"), "--name", "x"])
    assert not (source.parent / "again").exists()
    (made / "manifest.json").unlink()
    assert index.main([str(made), str(source.parent / "again"), "--name", "x"]) == 0


def test_names_that_hold_no_file(source):
    """A pipe would never answer."""
    odd = source / "imagenet22k-train-0002.tar"
    os.mkfifo(odd)
    assert f"{odd}: expected a file, it is none" in refusal(source)
    odd.unlink()
    odd.symlink_to("nowhere")
    assert f"{odd}: a link that leads nowhere; fetch it again" in refusal(source)


def test_what_timms_list_promises_must_be_there(source):
    """Lost last shards leave no gap: only the list tells."""
    files = [f"imagenet22k-train-{number:04d}.tar" for number in range(3)]
    info = {"splits": {"train": {"filenames": files, "shard_lengths": [6, 9, 6]}}}
    (source / "_info.json").write_text(json.dumps(info))
    message = refusal(source)
    assert "imagenet22k-train-0002.tar is missing, _info.json lists it" in message
    assert "imagenet22k-train-0001.tar has 6 samples, _info.json says 9" in message
    info["splits"]["train"] = {"filenames": files[:2], "shard_lengths": [6, 6]}
    (source / "_info.json").write_text(json.dumps(info))
    assert run(source) == 0


def test_a_destination_inside_the_source(source):
    with pytest.raises(DataError, match="lies inside the source"):
        index.main([str(source), str(source / "set"), "--name", "x"])
    assert not (source / "set").exists()


@pytest.mark.parametrize("tool", [["data_tools.build", "index"], ["data_tools.index"]])
def test_the_command_ends_with_a_line_for_each_fault_and_code_2(source, tool):
    (source / "imagenet22k-train-0000.tar").write_text("<html></html>")
    (source / "imagenet22k-train-0001.tar").write_bytes(b"")
    command = [sys.executable, "-m", *tool, str(source), str(source.parent / "set"), "--name", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    one, other = done.stderr.splitlines()
    assert one.startswith(f"error: {source}/imagenet22k-train-0000.tar: a web page or an error")
    assert other.startswith(f"error: {source}/imagenet22k-train-0001.tar: empty file; fetch it")
    assert not done.stdout
    assert sorted(path.name for path in source.parent.iterdir()) == ["src"]


def test_a_destination_that_cannot_be_written(source, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index.os, "fsync", full)
    assert "cannot be written: No space left on device" in refusal(source)


@pytest.mark.parametrize("splits", [[], {"train": {"filenames": ["a.tar"]}}, {"train": 3}])
def test_a_list_that_timm_did_not_write(source, splits):
    (source / "_info.json").write_text(json.dumps({"splits": splits}))
    assert "_info.json: not as timm writes it" in refusal(source)
