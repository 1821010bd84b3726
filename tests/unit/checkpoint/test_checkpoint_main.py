"""``python -m pretrain.checkpoint``: what it says, what it refuses, what it writes."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from saved_by_hand import SHAPES, value, write_checkpoint

from pretrain.checkpoint.__main__ import main
from pretrain.errors import CheckpointError


@pytest.fixture
def run(tmp_path):
    for step in (1, 2, 10):
        write_checkpoint(tmp_path / "checkpoints", step)
    (tmp_path / "checkpoints" / "attempt_00000003").mkdir()
    return tmp_path


def told(capsys, *arguments) -> list[dict]:
    main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)["checkpoints"]


def test_inspect_takes_a_run_a_directory_or_one(run, capsys):
    for path, steps in ((run, [1, 2, 10]), (run / "checkpoints", [1, 2, 10]),
                        (run / "checkpoints" / "step_00000002", [2])):  # fmt: skip
        assert [row["step"] for row in told(capsys, "inspect", path)] == steps
    row = told(capsys, "inspect", run)[2]
    assert (row["samples"], row["world_size"], row["files"]) == (640, 2, 2)
    assert (row["parameters"], row["kinds"]) == (18, ["master", "exp_avg", "exp_avg_sq"])
    assert row["bytes"] > 3 * 18 * 4


def test_inspect_prints_a_table(run, capsys):
    (run / "checkpoints" / "step_00000001" / "manifest.json").unlink()
    assert main(["inspect", str(run)]) == 0
    header, first, second, third, refusal = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["step", "samples", "world", "size"]
    assert first.split()[0] == "1"
    assert "?" in first
    assert second.split()[:3] == ["2", "128", "2"]
    assert third.split()[:3] == ["10", "640", "2"]
    assert refusal.startswith("refused: ")
    assert "manifest.json: missing" in refusal


def test_verify_finds_what_inspect_does_not(run, capsys):
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.count("sound") == 3
    path = run / "checkpoints" / "step_00000010" / "rank_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["inspect", str(run)]) == 0
    capsys.readouterr()
    assert main(["verify", str(run)]) == 1
    output = capsys.readouterr().out
    assert f"refused: {path}: damaged" in output
    assert output.count("sound") == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nothing", "found nothing there"),
        ("file", "found a file"),
        ("empty", "found no step_"),
    ],
)
def test_bad_paths_are_one_line(tmp_path, given, said):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=said) as refusal:
        main(["verify", str(tmp_path / given)])
    assert "\n" not in str(refusal.value)


def test_consolidate_writes_whole_parameters(run, capsys):
    destination = run / "made" / "weights.safetensors"
    assert main(["consolidate", str(run), str(destination)]) == 0
    assert "step 10" in capsys.readouterr().out
    tensors = load_file(destination)
    assert tensors.keys() == SHAPES.keys()
    for name, shape in SHAPES.items():
        assert torch.equal(tensors[name], value("master", name, 10).view(shape))
    with safe_open(destination, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["step"], json.loads(metadata["classes"])[0]) == ("10", "n00000001")
    assert [path.name for path in destination.parent.iterdir()] == ["weights.safetensors"]


def test_consolidate_writes_the_whole_state_of_one(run):
    destination = run / "state.safetensors"
    source = run / "checkpoints" / "step_00000002"
    assert main(["consolidate", str(source), str(destination), "--kind", "all"]) == 0
    tensors = load_file(destination)
    assert len(tensors) == 3 * len(SHAPES)
    assert torch.equal(tensors["exp_avg|head.bias"], value("exp_avg", "head.bias", 2))


def test_consolidate_falls_back_and_says_so(run, capsys):
    (run / "checkpoints" / "step_00000010" / "rank_00000.safetensors").write_bytes(b"")
    assert main(["consolidate", str(run), str(run / "a.safetensors")]) == 0
    output = capsys.readouterr().out
    assert "refused: " in output
    assert "step 2" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.bin"], "expected a name that ends in .safetensors"),
        (["taken.safetensors"], "exists; choose a name"),
        (["a.safetensors", "--kind", "ema"], "keeps no ema; it has master"),
    ],
)
def test_consolidate_refuses_before_it_writes(run, arguments, said):
    (run / "taken.safetensors").write_bytes(b"somebody's")
    before = sorted(run.iterdir())
    with pytest.raises(CheckpointError, match=said):
        main(["consolidate", str(run), str(run / arguments[0]), *arguments[1:]])
    assert sorted(run.iterdir()) == before
