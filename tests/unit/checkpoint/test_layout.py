import hashlib
import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
from saved_by_hand import contents, manifest_of, write_checkpoint

from pretrain.checkpoint.layout import (
    FORMAT,
    CheckpointManifest,
    check_coverage,
    directory_name,
    parse_key,
    read_manifest,
    step_of,
)
from pretrain.errors import CheckpointError

NEW_IN_3 = ("attempt", "accuracy_fraction")


def test_names():
    assert directory_name(1000) == "step_00001000"
    assert step_of("step_00001000") == 1000
    assert step_of(directory_name(123_456_789)) == 123_456_789
    for other in ("step_1000", "step_00001000.tmp", "step_000000001000", "latest", "step_"):
        assert step_of(other) is None


def test_key():
    assert parse_key("exp_avg|layers.0.norm.weight|96") == ("exp_avg", "layers.0.norm.weight", 96)


@pytest.mark.parametrize("key", ["", "master|x", "mean|x|0", "master||0", "master|x|-1", "a|b|c|d"])
def test_bad_key(key):
    with pytest.raises(CheckpointError, match="kind"):
        parse_key(key)


def test_reads_back_what_was_written(tmp_path):
    directory = write_checkpoint(tmp_path, 7)
    manifest = read_manifest(directory)
    assert manifest.step == 7
    assert manifest.samples_consumed == 448
    assert manifest.classes == ("n00000001", "n00000002", "n00000003")
    assert manifest.shapes == {"head.weight": (3, 5), "head.bias": (3,)}
    assert manifest.state == {"optimizer_step": 7, "skipped_steps": 0}
    assert manifest.files["rank_00001.safetensors"].fragments["master|head.weight|4"] == 5


def _resigned(text: str, **changes) -> str:
    """Change a manifest and make its own digest right again, as a newer program would."""
    body = json.loads(text)["manifest"] | changes
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"manifest": body, "sha256": digest}, indent=1, sort_keys=True) + "\n"


def test_format_is_fixed(tmp_path):
    """A change of the format must raise its version: this is version 3, byte for byte."""
    text = (write_checkpoint(tmp_path, 7) / "manifest.json").read_text()
    assert FORMAT == 3
    assert sorted(json.loads(text)["manifest"]) == [
        "accuracy_fraction", "attempt", "classes", "config_sha256", "files", "format",
        "samples_consumed", "shapes", "state", "step", "world_size",
    ]  # fmt: skip
    assert _resigned(text) == text


def test_newer_format_is_refused_by_its_number(tmp_path):
    path = write_checkpoint(tmp_path, 7) / "manifest.json"
    path.write_text(_resigned(path.read_text(), format=4, invented="later"))
    with pytest.raises(CheckpointError, match=r"written in format 4.*reads up to 3"):
        read_manifest(path.parent)


@pytest.mark.parametrize("version", [1, 2])
def test_older_formats_are_read(tmp_path, version):
    """Version 1 knew no average, neither knew attempts and accuracies."""
    path = write_checkpoint(tmp_path, 7) / "manifest.json"
    body = json.loads(path.read_text())["manifest"]
    body = {name: value for name, value in body.items() if name not in NEW_IN_3}
    path.write_text(_resigned(json.dumps({"manifest": body}), format=version))
    manifest = read_manifest(path.parent)
    assert (manifest.step, manifest.attempt, manifest.accuracy_fraction) == (7, 0, None)


def test_an_average_covers_every_parameter_or_none(tmp_path):
    whole = _whole()
    name, file = next(iter(whole.files.items()))
    averages = {"ema|head.weight|0": 15, "ema|head.bias|0": 3}
    for held, refused in ((averages, False), ({"ema|head.weight|0": 15}, True)):
        files = whole.files | {name: replace(file, fragments=file.fragments | held)}
        with (
            pytest.raises(CheckpointError, match=r"ema of head\.bias.*at 0")
            if refused
            else nullcontext()
        ):
            check_coverage(replace(whole, files=files), tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{", '{"manifest": 3}', '{"manifest": {}}', "[" * 100_000, "\ud800"],
)
def test_garbage_is_refused(tmp_path, text):
    path = write_checkpoint(tmp_path, 7) / "manifest.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"damaged|cannot be read"):
        read_manifest(path.parent)


def test_another_steps_manifest_is_refused(tmp_path):
    new, old = write_checkpoint(tmp_path, 8), write_checkpoint(tmp_path, 7)
    (new / "manifest.json").write_text((old / "manifest.json").read_text())
    with pytest.raises(CheckpointError, match="the manifest is of step 7"):
        read_manifest(new)


def test_files_outside_are_never_named(tmp_path):
    path = write_checkpoint(tmp_path, 7) / "manifest.json"
    files = json.loads(path.read_text())["manifest"]["files"]
    files["../rank_00000.safetensors"] = files.pop("rank_00000.safetensors")
    path.write_text(_resigned(path.read_text(), files=files))
    with pytest.raises(CheckpointError, match="not a name"):
        read_manifest(path.parent)


def test_all_wrong_files_are_listed(tmp_path):
    directory = write_checkpoint(tmp_path, 7)
    (directory / "rank_00000.safetensors").unlink()
    with (directory / "rank_00001.safetensors").open("ab") as file:
        file.write(b"x")
    (directory / "rank_00002.safetensors").write_bytes(b"of another save")
    with pytest.raises(CheckpointError) as refusal:
        read_manifest(directory)
    lines = str(refusal.value).splitlines()
    assert [line.rpartition("/")[2].partition(":")[0] for line in lines] == [
        "rank_00000.safetensors", "rank_00001.safetensors", "rank_00002.safetensors"
    ]  # fmt: skip
    assert "missing" in lines[0]
    assert "bytes, got" in lines[1]
    assert "not named in the manifest" in lines[2]


def _whole() -> CheckpointManifest:
    return manifest_of(7, dict.fromkeys(contents(7), b""))


def test_whole_coverage_passes(tmp_path):
    check_coverage(_whole(), tmp_path)


@pytest.mark.parametrize(
    ("drop", "add", "said"),
    [
        ("exp_avg|head.weight|4", {}, "exp_avg of head.weight.*at 4"),
        ("master|head.bias|0", {}, "master of head.bias.*at 0"),
        ("master|head.bias|2", {}, "master of head.bias.*at 2"),
        (None, {"master|head.weight|3": 1}, "master of head.weight.*at"),
        (None, {"master|head.weight|15": 1}, "master of head.weight.*at 16"),
        (None, {"master|other|0": 1}, "master of other: no such parameter"),
    ],
)
def test_gaps_and_overlaps_are_named(tmp_path, drop, add, said):
    manifest = _whole()
    files = dict(manifest.files)
    for name, file in files.items():
        kept = {key: count for key, count in file.fragments.items() if key != drop}
        files[name] = replace(
            file, fragments=kept | (add if name.endswith("0.safetensors") else {})
        )
    with pytest.raises(CheckpointError, match=said):
        check_coverage(replace(manifest, files=files), tmp_path)
