"""``python -m pretrain.evaluate``: what it counts is what plain arithmetic finds."""

import json
import re
from collections import Counter

import pytest
from evaluated import (
    HEAD_CLASSES,
    SET_CLASSES,
    VALIDATION_IMAGES,
    Case,
    make_case,
    make_export,
    ranking,
    rows_by_hand,
)

from pretrain import dist
from pretrain.data.manifest import read_manifest
from pretrain.data.shards import ShardReader
from pretrain.errors import CheckpointError, ConfigError, DataError, ModelError, PretrainError
from pretrain.evaluate.__main__ import main
from pretrain.evaluate.report import print_table


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    dist.shutdown()


def evaluate(case, *options, data=None):
    """Run the command; returns the JSON it wrote."""
    sets = [option for path in data or [case.shards] for option in ("--data", str(path))]
    common = ["--workers", "0", "--batch-size", "8", "--device", "cpu"]
    assert main([str(case.export), *sets, *common, *map(str, options)]) == 0
    (path,) = case.export.cwd().glob("evaluation/*.json")
    return json.loads(path.read_text())


def numbers_of(case):
    """The published number of each validation image, by sample id, straight from the shards."""
    manifest = read_manifest(case.shards)
    shards = manifest.split("validation").shards
    reader = ShardReader(manifest.root, shards, len(manifest.classes))
    sources = [
        json.loads(reader.read_metadata(sample) or b"")["source"]
        for sample in range(VALIDATION_IMAGES)
    ]
    return [int(re.findall(r"_(\d{8})\.", source)[0]) for source in sources]


def test_it_counts_what_plain_arithmetic_finds(case, capsys):
    found = evaluate(case)["sets"][0]
    rows = rows_by_hand(case)
    taken_for = [(wnid, ranking(logits, HEAD_CLASSES, SET_CLASSES)[0]) for _, wnid, logits in rows]
    right = sum(wnid == first for wnid, first in taken_for)
    assert 0 < right < VALIDATION_IMAGES, "the case says nothing"
    assert found["images"] == VALIDATION_IMAGES
    assert found["top1_fraction"] == right / VALIDATION_IMAGES
    by_class = {row["wnid"]: (row["images"], row["top1"]) for row in found["by_class"]}
    assert by_class == {
        wnid: (
            sum(label == wnid for label, _ in taken_for),
            sum(label == first == wnid for label, first in taken_for),
        )
        for wnid in SET_CLASSES
    }
    wrong = Counter(pair for pair in taken_for if pair[0] != pair[1])
    pairs = [(row["wnid"], row["taken_for_wnid"], row["images"]) for row in found["most_confused"]]
    assert pairs == [
        (*pair, images)
        for pair, images in sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    ]
    output = capsys.readouterr().out
    share = right / VALIDATION_IMAGES
    error = (share * (1 - share) / VALIDATION_IMAGES) ** 0.5
    assert found["top1_standard_error"] == pytest.approx(error)
    assert re.search(rf" {100 * share:.2f} │ +{100 * error:.2f} │", output)
    assert "± is the standard error of top-1" in output
    assert "(raw of step 7, swin_t, 8 classes)" in output
    assert "short side to 36, centre 32x32 cut out (bicubic, antialiased); mean 0.4" in output


def test_names_are_the_sets_else_the_models(case):
    rows = evaluate(case)["sets"][0]["by_class"]
    assert [row["name"] for row in rows] == [
        "name of n00000001", "name of n00000003", "model's n00000005"
    ]  # fmt: skip
    page = (case.export.cwd() / "evaluation" / f"{case.export.parent.name}-export.md").read_text()
    assert "model's n00000005" in page
    assert "| images | of the class | class | taken for |\n| ---: | ---: | --- | --- |" in page
    assert f"29 of 29 images, {len(SET_CLASSES)} of {len(SET_CLASSES)} classes" in page
    assert "\n\n\n" not in page


def test_the_whole_head_would_count_otherwise(case):
    """Restricting to the set's classes matters: over all eight the answers differ."""
    rows = rows_by_hand(case)
    everything = sum(
        ranking(logits, HEAD_CLASSES, HEAD_CLASSES)[0] == wnid for _, wnid, logits in rows
    )
    assert everything / len(rows) != evaluate(case)["sets"][0]["top1_fraction"]


def test_real_labels_count_any_right_answer_and_skip_images_without(case, tmp_path, capsys):
    numbers = numbers_of(case)
    order = sorted(SET_CLASSES)
    real = [[], [2], [0, 1]] * 10
    real = real[:VALIDATION_IMAGES]
    (tmp_path / "real.json").write_text(json.dumps(real))
    found = evaluate(case, "--real", tmp_path / "real.json")["sets"][0]["real"]
    judged = [
        ranking(logits, HEAD_CLASSES, SET_CLASSES)[0]
        in {order[label] for label in real[numbers[sample] - 1]}
        for sample, _, logits in rows_by_hand(case)
        if real[numbers[sample] - 1]
    ]
    assert found["images"] == len(judged) < VALIDATION_IMAGES
    assert found["top1_fraction"] == pytest.approx(sum(judged) / len(judged), abs=1e-12)
    assert 0 < sum(judged) < len(judged)
    assert found["labels"] == str(tmp_path / "real.json")
    assert "│ tiny, ReaL │ validation │" in capsys.readouterr().out


def test_a_log_holds_whole_names_and_a_narrow_terminal_whole_numbers(case, monkeypatch, capsys):
    found = evaluate(case)
    (one,) = found["sets"]
    one["edition"], one["images"] = "a set whose name is as long as that of imagenet_v2", 50_000
    capsys.readouterr()
    print_table(found)
    assert one["edition"] in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    print_table(found)
    output = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert {len(line) for line in output.splitlines()} == {80}
    assert " 50,000 │" in output
    assert f" {one['loss']:.4f} │" in output
    assert "…" not in output


def test_a_class_the_model_lacks_is_refused_by_its_id_or_left_out(case, tmp_path):
    head = tuple(wnid for wnid in HEAD_CLASSES if wnid != "n00000003")
    (tmp_path / "poorer").mkdir()
    poorer = Case(make_export(tmp_path / "poorer" / "export", head), case.shards)
    with pytest.raises(
        DataError, match=r"does not know 1 of its 3 classes: n00000003; --leave-out"
    ):
        evaluate(poorer)
    dist.shutdown()
    found = evaluate(poorer, "--leave-out-unknown-classes")["sets"][0]
    left = ("n00000001", "n00000005")
    rows = [row for row in rows_by_hand(poorer) if row[1] in left]
    right = sum(ranking(logits, head, left)[0] == wnid for _, wnid, logits in rows)
    assert found["classes_left_out"] == ["n00000003"]
    assert (found["images"], found["images_in_split"]) == (len(rows), VALIDATION_IMAGES)
    assert found["top1_fraction"] == right / len(rows)


def test_an_image_of_a_class_left_out_counts_where_another_answer_is_left(case, tmp_path):
    (tmp_path / "poorer").mkdir()
    head = tuple(wnid for wnid in HEAD_CLASSES if wnid != "n00000003")
    poorer = Case(make_export(tmp_path / "poorer" / "export", head), case.shards)
    real = [[0, 1], [1], [2]] * 10
    (tmp_path / "real.json").write_text(json.dumps(real[:VALIDATION_IMAGES]))
    found = evaluate(poorer, "--leave-out-unknown-classes", "--real", tmp_path / "real.json")
    assert found["sets"][0]["real"]["images"] == sum(
        labels != [1] for labels in real[:VALIDATION_IMAGES]
    )


def test_overrides_are_taken_and_stated(case, capsys):
    before = evaluate(case)
    dist.shutdown()
    after = evaluate(case, "--resize", "squash", "--mean", 0, 0, 0)
    assert after["preprocessing"]["resize"] is None
    assert after["preprocessing"]["mean"] == [0, 0, 0]
    assert after["preprocessing"]["std"] == before["preprocessing"]["std"] == [0.2, 0.25, 0.3]
    assert after["preprocessing"]["interpolation"].startswith("bicubic")
    assert after["sets"][0]["loss"] != before["sets"][0]["loss"]
    assert "command line says (resize, mean)" in capsys.readouterr().out


def test_another_image_size_takes_the_recipes_resize(case):
    found = evaluate(case, "--image-size", 64)
    assert found["preprocessing"]["resize"] == 64 * 256 // 224
    assert found["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert found["weights"]["model"]["image_size"] == 64


def test_a_full_disk_does_not_take_the_numbers_with_it(case, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretrain.evaluate.report.replace_text", fail)
    with pytest.raises(CheckpointError, match="evaluation: cannot be written: No space left"):
        evaluate(case)
    assert "top-1 %" in capsys.readouterr().out


def test_another_split_can_be_named(case):
    assert evaluate(case, "--split", "train")["sets"][0]["images"] == 6


def refusals(case, tmp_path):
    html = tmp_path / "weights.safetensors"
    html.write_text("<html>404</html>")
    short = tmp_path / "real.json"
    short.write_text("[[0]]")
    yield [case.export / "gone"], PretrainError, "found nothing there"
    yield [html], PretrainError, "safetensors"
    yield [case.export, "--split", "test"], DataError, "no split 'test'; there are: train, valid"
    yield [case.export, "--real", short], DataError, "labels for 1 images.*have 29"
    yield [case.export, "--real", html], DataError, "expected ReaL labels as JSON"
    yield [case.export, "--real", tmp_path / "no.json"], DataError, "No such file"
    yield [case.export, "--weights", "ema"], ModelError, "holds raw weights only, not ema"
    yield [case.export, "--resize", "10"], ConfigError, "10 is smaller than the image size 32"
    yield [case.export, "--resize", "none"], ConfigError, "expected pixels or 'squash'"
    yield [case.export, "--std", "0", "1", "1"], ConfigError, "--std: .*greater than 0"
    yield [case.export, "--image-size", "44"], ConfigError, "44"
    yield [case.export, "--batch-size", "0"], ConfigError, "at least 1, got 0"
    yield [case.export, "--output", html], ConfigError, "is not a directory"
    yield [case.export, "--name", "../x"], ConfigError, "expected a file name"
    yield [case.export, "--data", str(case.shards)], ConfigError, "given twice"


def test_bad_input_is_one_clear_line_and_nothing_is_written(case, tmp_path):
    for arguments, kind, message in refusals(case, tmp_path):
        given = [*map(str, arguments), "--data", str(case.shards), "--workers", "0"]
        with pytest.raises(kind, match=message) as caught:
            main(given)
        dist.shutdown()
        assert "\n" not in str(caught.value), caught.value
    assert not (tmp_path / "evaluation").exists()


def test_missing_shards_are_refused(tmp_path):
    case = make_case(tmp_path / "own")
    shard = next(case.shards.glob("tiny-validation-*.tar"))
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name}: No such file"):
        evaluate(case)
    with pytest.raises(DataError, match="does not exist"):
        evaluate(case, data=[tmp_path / "nowhere"])


def test_real_labels_need_the_published_names(case, tmp_path, small_shards):
    head = tuple(f"n{label:08d}" for label in range(4))
    (tmp_path / "own").mkdir()
    own = Case(make_export(tmp_path / "own" / "export", head), small_shards.path)
    (tmp_path / "real.json").write_text(json.dumps([[0]] * 20))
    with pytest.raises(DataError, match="20 of 20 images do not say their number"):
        evaluate(own, "--real", tmp_path / "real.json")
    dist.shutdown()
    (tmp_path / "real.json").write_text(json.dumps([[0]] * 29))
    with pytest.raises(DataError, match="the sets given have 20"):
        evaluate(own, "--real", tmp_path / "real.json")


def test_an_image_that_cannot_be_read_is_named_and_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.data.loader.MIN_SAMPLES_JUDGED", 10**6)
    case = make_case(tmp_path / "own")
    manifest = read_manifest(case.shards)
    shard = manifest.split("validation").shards[0]
    path = case.shards / shard.file
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xd8\xff")
    content[start + 40] ^= 255
    path.write_bytes(content)
    found = evaluate(case)["sets"][0]
    assert found["images"] == VALIDATION_IMAGES - 1
    (bad,) = found["bad_samples"]
    assert bad["shard"] == shard.file
    assert "changed since it was packed" in bad["reason"]
