"""What cannot run is refused by both entry points alike: one line, exit code 2, nothing written."""

import shutil
import sys
from pathlib import Path

import pytest

from launch.slurm import main as launch_main
from pretrain.__main__ import main as pretrain_main
from pretrain.config.load import load_run
from pretrain.errors import run_command
from pretrain.run_directory import RunDirectory

CONFIG = """\
data: {{path: {shards}}}
model: {{variant: swin_t, embed_dim: 16, depths: [1, 1, 1, 1], heads: [1, 2, 4, 8],
         image_size: 32, window_size: 4, num_classes: 4}}
optim: {{lr: 1.0e-3}}
schedule: {{epochs: 2}}
batch: {{global_size: 16, micro_size_max: 16}}
augment: {{mix_group: 8}}
cluster: {{device: cpu}}
"""

ENTRIES = {
    "launch": (launch_main, ["--cluster", "local"]),
    "pretrain": (pretrain_main, []),
}


class Typed:
    """A user at a terminal, in an empty directory with one config."""

    def __init__(self, folder: Path, shards: Path, entry: str, monkeypatch, capsys):
        self.folder = folder
        self.config = folder / "small.yaml"
        self.config.write_text(CONFIG.format(shards=shards))
        self._main, self._arguments = ENTRIES[entry]
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def refusal(self, *overrides: str, config: str | None = None) -> str:
        """Type the command; return its one line after checking exit code and silence."""
        before = {path: path.stat().st_mtime_ns for path in self.folder.rglob("*")}
        arguments = ["--config", config or str(self.config), *self._arguments, *overrides]
        self._monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command(self._main)
        assert ended.value.code == 2
        after = {path: path.stat().st_mtime_ns for path in self.folder.rglob("*")}
        assert after == before, "something was written"
        lines = self._capsys.readouterr().err.splitlines()
        assert all(line.startswith("error: ") for line in lines), lines
        return "\n".join(lines)


@pytest.fixture(params=sorted(ENTRIES))
def typed(request, tmp_path, small_shards, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return Typed(tmp_path, small_shards.path, request.param, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lrr=1", "optim.lrr: unknown key; did you mean 'optim.lr'?"),
        ("seed=one", 'seed: input should be a valid integer, got "one"'),
        ("batch.global_size=20", "20 does not divide into 1 ranks x mixing groups of 8"),
        ("model.image_size=48", "model.image_size: got 48"),
        ("augment.randaugment=rand-x9", "augment.randaugment"),
        ("data.path=nowhere", "nowhere/manifest.json does not exist; build them with:"),
        ("model.num_classes=3", "class list"),
        ("model.num_classes=5", "shorter than the head: 4 classes, head of 5"),
        ("data.eval_split=test", "no split 'test'; there are: train, validation"),
        ("init_from=never_trained", "init_from: never_trained:"),
        ("init_from=./no/such", "does not exist"),
        ("init_from=./small.yaml", "expected weights, got text that begins"),
        ("init_classes=./small.yaml", "init_classes: says how to read init_from, which is not"),
        ("init_from=../", "expected an export"),
        (f"data.path={'d' * 300}", "cannot be looked at: File name too long"),
        (f"runs_dir=/tmp/{'r' * 300}", "cannot be looked at: File name too long"),
        (f"init_from=./{'i' * 300}", "cannot be looked at: File name too long"),
        ("init_from=small", "init_from: small: is this run itself"),
        ("batch.global_size=1024", "more than the 96 samples"),
        (
            "masking={}",
            "masking: learns without labels; give data.eval_split=null augment.mix_probability=0 "
            "augment.label_smoothing=0",
        ),
        ("masking.ratio=0", "masking.ratio: input should be greater than 0, got 0"),
        ("schedule.kind=multistep", "milestone_epochs: expected some with kind: multistep"),
        ("schedule.milestone_epochs=[1]", "and none otherwise, got [1] with kind: cosine"),
    ],
)
def test_one_line_says_what_and_what_to_do(typed, override, expected):
    message = typed.refusal(override)
    assert expected in message
    assert message.count("\n") == 0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("masking.patch_size=16", "masking.ratio: 0.9 of 4 squares of 16 pixels hides all of them"),
        ("masking.patch_size=12", "masking.patch_size: got 12, expected a multiple"),
        ("masking.patch_size=2", "divides model.image_size 32: 4, 8, 16"),
        ("eval.probe.path=x", "masking: learns without labels; give eval.probe=null"),
        ("augment.mix_probability=0.5", "give augment.mix_probability=0"),
        ("augment.label_smoothing=0.1", "give augment.label_smoothing=0"),
        ("data.eval_split=validation", "give data.eval_split=null"),
    ],
)
def test_what_masked_pretraining_cannot_do(typed, override, expected):
    sound = ["masking={patch_size: 8, ratio: 0.9}", "data.eval_split=null"]
    sound += ["augment.mix_probability=0", "augment.label_smoothing=0"]
    message = typed.refusal(*sound, override)
    assert expected in message
    assert message.count("\n") == 0


@pytest.mark.parametrize("epochs", [[3, 3], [4, 3], [1], [10]])
def test_milestones_rise_inside_the_decay(typed, epochs):
    schedule = ["schedule.epochs=10", "schedule.warmup_epochs=2", "schedule.kind=multistep"]
    message = typed.refusal(*schedule, f"schedule.milestone_epochs={epochs}")
    assert message.count("\n") == 0
    assert message.endswith(f"end of the warm-up (2) to below epochs (10), got {epochs}")


def test_options_may_stand_between_overrides(typed):
    message = typed.refusal("seed=one", "--name", "other", "batch.global_size=none")
    assert "seed: input" in message
    assert "batch.global_size: input" in message


def test_a_settled_run_takes_no_overrides(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--run", str(tmp_path), "optim.lr=1.0"])
    with pytest.raises(SystemExit) as ended:
        run_command(pretrain_main)
    assert ended.value.code == 2
    assert "key=value and --name go with --config" in capsys.readouterr().err


def test_duplicate_keys(typed):
    typed.config.write_text(typed.config.read_text() + "seed: 1\nseed: 2\n")
    assert "duplicate key" in typed.refusal()


def test_unknown_names_suggest_the_nearest(typed):
    assert "did you mean 'swin_l_22k'?" in typed.refusal(config="swin_l_22")


def test_the_flagship_without_shards_says_where_it_looked_and_what_builds_them(typed):
    message = typed.refusal(config="swin_l_22k")
    assert f"{typed.folder}/shards/imagenet22k/manifest.json does not exist" in message
    assert "python -m data_tools.build" in message


def test_manifest_and_shards_that_disagree(typed, small_shards):
    copy = typed.folder / "shards"
    shutil.copytree(small_shards.path, copy)
    shard = next(copy.glob("*train*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    message = typed.refusal(f"data.path={copy}")
    assert str(shard) in message
    assert "the manifest says" in message
    shard.unlink()
    assert str(shard) in typed.refusal(f"data.path={copy}")


def test_a_run_without_weights_yet(typed):
    other = typed.folder / "runs" / "other"
    RunDirectory(other).create(load_run(str(typed.config), ["name=other"]), "{}")
    assert "the run has no export and no checkpoint yet" in typed.refusal(f"init_from={other}")


def test_a_damaged_manifest(typed, small_shards):
    copy = typed.folder / "shards"
    shutil.copytree(small_shards.path, copy)
    (copy / "manifest.json").write_text("{")
    assert "manifest.json: damaged" in typed.refusal(f"data.path={copy}")


def test_a_run_directory_of_another_config(typed):
    config = load_run(str(typed.config), ["optim.lr=9.0"])
    RunDirectory(Path(config.runs_dir) / config.name).create(config, "{}")
    message = typed.refusal()
    assert "belongs to a run with another config" in message
    assert "optim.lr: the run has 9.0, got 0.001" in message


def test_shards_and_pickles_are_no_weights(typed, small_shards):
    assert "expected an export" in typed.refusal(f"init_from={small_shards.path}")
    weights = typed.folder / "swin.pth"
    weights.touch()
    assert "got an empty file" in typed.refusal("init_from=./swin.pth")
    weights.write_bytes(b"<!DOCTYPE html>")
    assert "got a web page" in typed.refusal("init_from=./swin.pth")
    weights.write_bytes(b"\x80\x02 as far as can be told without torch")
    given = ["init_from=./swin.pth", "init_classes=./classes.txt"]
    assert "init_classes: " in typed.refusal(*given)
    (typed.folder / "classes.txt").write_text("n1\nn1\n")
    assert "classes.txt: expected each class id once" in typed.refusal(*given)


def test_output_that_cannot_be_written(typed):
    (typed.folder / "runs").write_text("a file in the way")
    assert "is not a directory; give runs_dir=PATH" in typed.refusal()
    assert "not writable" in typed.refusal("runs_dir=/proc/1")
