"""The command: what it prints, what it refuses, and that it then wrote nothing."""

import subprocess
import sys

import pytest
import torch
from tiny_weights import CLASSES, LABELS, NAMES, same, tiny_loaded, tiny_weights

from pretrain.convert.__main__ import main
from pretrain.convert.labels import Labels
from pretrain.convert.read import load
from pretrain.convert.targets import TARGETS
from pretrain.convert.write import write
from pretrain.errors import PretrainError


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "swin.pth"
    write(tiny_loaded(labels=Labels(None, None)), path, "official", provenance={})
    return path


def test_it_converts_names_and_verifies(source, tmp_path, capsys):
    listed = tmp_path / "classes.txt"
    pairs = zip(CLASSES, NAMES, strict=True)
    listed.write_text("".join(f"{label}\t{name}\n" for label, name in pairs))
    there = tmp_path / "hub"
    arguments = [str(source), str(there), "--to", "huggingface", "--verify"]
    assert main([*arguments, "--classes", str(listed)]) == 0
    said = capsys.readouterr().out
    assert "official, swin_t, 64 pixels, window 2, 3 classes" in said
    assert "verified in transformers: float32 logits differ by" in said
    assert load(there).labels == LABELS
    ours = tmp_path / "export"
    assert main([str(there), str(ours), "--to", "safetensors", "--verify"]) == 0
    assert "read back bit for bit" in capsys.readouterr().out
    assert same(load(ours).tensors, tiny_weights())
    assert load(ours).labels == LABELS


def test_it_says_when_classes_are_unknown(source, tmp_path, capsys):
    assert main([str(source), str(tmp_path / "t"), "--to", "timm"]) == 0
    assert "--classes" in capsys.readouterr().out


def test_the_choices_are_what_can_be_written(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(target in said for target in TARGETS)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("n1\nn2\n", "expected 3 classes, one per row, got 2"),
        ("n1\nn2\nn1\n", "each class id once"),
    ],
)
def test_a_class_list_that_does_not_fit_is_refused(source, tmp_path, lines, words):
    (tmp_path / "c.txt").write_text(lines)
    with pytest.raises(PretrainError, match=words):
        main(
            [str(source), str(tmp_path / "t"), "--to", "timm", "--classes", str(tmp_path / "c.txt")]
        )
    assert not (tmp_path / "t").exists()


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"<html>")
    command = [sys.executable, "-m", "pretrain.convert", str(bad), str(tmp_path / "there")]
    done = subprocess.run([*command, "--to", "timm"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {bad}: expected weights, got a web page, perhaps a login or an error; "
        "download the file itself\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_averaged_weights_on_request(tmp_path, capsys):
    path = tmp_path / "x.pth"
    torch.save({"model": tiny_weights(), "model_ema": tiny_weights(1)}, path)
    main([str(path), str(tmp_path / "a"), "--to", "timm", "--weights", "ema"])
    assert "took model_ema" in capsys.readouterr().out
    assert same(load(tmp_path / "a").tensors, tiny_weights(1))
