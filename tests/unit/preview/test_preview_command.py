"""``python -m pretrain.augment preview`` as it is typed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pretrain.augment.__main__ import main
from pretrain.errors import PretrainError


def preview(*arguments: str | Path) -> int:
    return main(["preview", *map(str, arguments)])


def test_the_same_bytes_again_and_at_any_number_of_workers(painted, tmp_path, capsys):
    for name, workers in (("one", 0), ("two", 3)):
        overrides = (f"data.workers_per_rank={workers}", "log.every_steps=7")
        assert preview("--config", painted, *overrides, "--out", tmp_path / f"{name}.png") == 0
    one, two = (tmp_path / f"{name}.png" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert capsys.readouterr().out.startswith(f"{one}: painted, seed 19: what the model is given")
    assert preview("--config", painted, "--step", 1, "--out", one) == 0
    assert one.read_bytes() != two.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png"}


def test_crops_columns_and_a_list(painted, tmp_path, capsys):
    plain, tall = tmp_path / "plain.png", tmp_path / "tall.png"
    assert preview("--config", painted, "--images", 6, "--columns", 3, "--out", plain) == 0
    shown = ("--images", 6, "--columns", 3, "--crops", "--list")
    assert preview("--config", painted, *shown, "--out", tall) == 0
    assert Image.open(tall).height > Image.open(plain).height + 3 * 192
    lines = capsys.readouterr().out.splitlines()[3:]
    images = [line for line in lines if line.split()[0].isdigit()]
    assert len(images) == 6
    assert len(lines) - len(images) == 4  # of two groups of three, two images each
    first = images[0].split()
    assert first[1] == first[3]  # there is one shard, so that places are ids
    assert first[2] == "painted-train-000000.tar"
    assert "91.7% leaf (n90000452); Contrast" in images[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step", "6"), "--step: expected 0 to 5, since the run has 6 steps, got 6"),
        (("--step", "-1"), "--step: expected 0 to 5"),
        (("--micro-batch", "1"), "--micro-batch: expected 0 to 0, since a global batch is 1 of 24"),
        (("--images", "0"), "--images: expected at least 1, got 0"),
        (("--columns", "0"), "--columns: expected at least 1, got 0"),
        (("--out", "grid.jpg"), "--out: grid.jpg: expected a name that ends in .png"),
        (("--out", "nowhere/grid.png"), "nowhere is not a directory; make it first"),
        (("--out", "taken.png"), "--out: taken.png: is a directory"),
        (("data.path=elsewhere",), "build them with: python -m data_tools.build from here"),
        (("optim.lt=1",), "did you mean"),
        (("model.num_classes=7",), "model.num_classes"),
        (("augment.randaugment=rand",), "'inc1' is needed"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    painted, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(PretrainError, match=message) as refusal:
        preview("--config", painted, "--out", "grid.png", *arguments)
    assert str(refusal.value).count("\n") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


def test_refused_configs_and_runs(painted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (("--config", "nothing"), "nothing"),
        (("--config", "demo"), "a chain of demo_pretrain, demo_finetune; look at one of them"),
        (("--run", "nothing"), "no such run"),
        (("--run", "nothing", "seed=1"), "its config is settled"),
    ):
        with pytest.raises(PretrainError, match=message):
            preview("--out", "grid.png", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(painted, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PretrainError, match="is not writable; give another path"):
        preview("--config", painted, "--out", tmp_path / "grid.png")


def test_typed_wrong_it_is_one_line_and_exit_code_2(painted, tmp_path):
    command = [sys.executable, "-m", "pretrain.augment", "preview", "--config", str(painted)]
    done = subprocess.run(
        [*command, "--step", "6", "--out", str(tmp_path / "grid.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: --step: expected 0 to 5, since the run has 6 steps, got 6\n"


def test_it_needs_neither_the_engine_nor_a_model(painted, tmp_path):
    code = (
        "import sys; from pretrain.augment.__main__ import main\n"
        f"main(['preview', '--config', {str(painted)!r}, '--out', {str(tmp_path / 'g.png')!r}])\n"
        "heavy = {'deepspeed', 'wandb', 'matplotlib', 'pretrain.models.swin'} & set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
