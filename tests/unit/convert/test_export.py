"""Weights go out whole and come back as they were, or with one line that says why not."""

import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pretrain import dist
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.schema import ModelConfig, RunConfig
from pretrain.convert.export import read_weights, write_export
from pretrain.data.manifest import class_order_sha256
from pretrain.errors import CheckpointError, ModelError, PretrainError
from pretrain.run_directory import RunDirectory
from pretrain.world import World

MODEL = ModelConfig(
    variant="swin_t", image_size=32, window_size=4, num_classes=3, depths=(1, 1, 2, 1)
)
CLASSES = ("n00000001", "n00000002", "n00000003")
NAMES = ("tench", "thé", "teddy")


def weights_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "head.weight": torch.randn(3, 4, generator=generator),
        "head.bias": torch.randn(3, generator=generator),
        "norm.weight": torch.randn(8, generator=generator)[::2],  # not contiguous
    }


def export(directory, weights=None, **changes):
    arguments = {
        "model": MODEL,
        "classes": CLASSES,
        "class_names": NAMES,
        "preprocessing": {"image_size": 32, "resize": None, "mean": (0.5, 0.5, 0.5)},
        "provenance": {"run": "tiny", "step": 10, "loss": float("nan")},
    }
    write_export(
        directory, weights_of() if weights is None else weights, **{**arguments, **changes}
    )
    return directory


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def run(tmp_path, request):
    """A run directory with checkpoints of steps 10 (weights 10) and 20 (weights 20)."""
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"path": "/data"},
            "model": MODEL,
            "optim": {"lr": 0.001},
            "schedule": {"epochs": 10},
            "batch": {"global_size": 8, "micro_size_max": 8},
        }
    )
    run = RunDirectory(tmp_path / "tiny")
    run.create(config, "{}")
    dist.initialize(World(), torch.device("cpu"), timeout_seconds=30)
    request.addfinalizer(dist.shutdown)
    store = CheckpointStore(run.checkpoints_dir, world=World(), keep_last=2)
    for step in (10, 20):
        weights = weights_of(step)
        store.save(
            step,
            {
                f"{kind}|{name}|0": tensor.flatten() * (kind == "master")
                for kind in ("master", "exp_avg", "exp_avg_sq")
                for name, tensor in weights.items()
            },
            shapes={name: tuple(tensor.shape) for name, tensor in weights.items()},
            state={},
            samples_consumed=step,
            config_sha256="0" * 64,
            classes=CLASSES,
        )
    return run


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


def test_an_export_comes_back_as_it_was(tmp_path):
    read = read_weights(export(tmp_path / "export"))
    assert same(read.tensors, weights_of())
    assert read.classes == CLASSES
    assert read.model == MODEL


def test_the_config_says_all_there_is_to_know(tmp_path):
    directory = export(tmp_path / "export")
    config = json.loads((directory / "config.json").read_text())
    assert config["format_version"] == 1
    assert config["classes"] == list(CLASSES)
    assert config["class_names"] == list(NAMES)
    assert config["class_order_sha256"] == class_order_sha256(CLASSES)
    assert config["model"]["variant"] == "swin_t"
    assert config["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert config["provenance"] == {"run": "tiny", "step": 10, "loss": None}
    assert config["weights"]["bytes"] == (directory / "model.safetensors").stat().st_size
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        assert file.metadata()["class_order_sha256"] == class_order_sha256(CLASSES)
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]


def test_an_export_replaces_an_older_one_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "export.tmp").mkdir()
    (tmp_path / "export.tmp" / "half").write_text("of a killed export")
    export(tmp_path / "export", weights_of(1))
    export(tmp_path / "export", weights_of(2))
    assert same(read_weights(tmp_path / "export").tensors, weights_of(2))
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_the_weights_file_stands_for_its_export(tmp_path):
    read = read_weights(export(tmp_path / "export") / "model.safetensors")
    assert read.classes == CLASSES


def without_head(weights):
    return {name: value for name, value in weights.items() if not name.startswith("head.")}


def test_weights_without_a_head_are_an_export_too(tmp_path):
    directory = tmp_path / "export"
    weights = without_head(weights_of(1))
    how = {"preprocessing": {}, "provenance": {}}
    write_export(directory, weights, model=MODEL, classes=(), class_names=(), **how)
    read = read_weights(directory)
    assert same(read.tensors, weights)
    assert (read.classes, read.model) == (None, MODEL.model_copy(update={"num_classes": 1}))
    with pytest.raises(ModelError, match="expected no classes without a head, got 3"):
        write_export(directory, weights, model=MODEL, classes=CLASSES, class_names=NAMES, **how)
    edit(directory, classes=["n1"], class_order_sha256=class_order_sha256(["n1"]))
    with pytest.raises(CheckpointError, match="names 1 classes of weights without a head"):
        read_weights(directory)


def test_other_layouts_are_read_elsewhere(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "some.safetensors")
    with pytest.raises(ModelError, match="expected an export, a run or a checkpoint"):
        read_weights(tmp_path / "some.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": CLASSES[:2]}, "expected 3 classes, got 2"),
        ({"class_names": NAMES * 2}, "expected 3 class names, got 6"),
        ({"classes": ("a", "b", "a")}, "class a is listed twice"),
        ({"weights": {}}, "got none"),
        ({"weights": {"a": torch.tensor([1.0, float("nan")])}}, "a and 0 more weights"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, changes, words):
    with pytest.raises(ModelError, match=words):
        export(tmp_path / "export", **changes)
    assert list(tmp_path.iterdir()) == []


def test_something_else_is_never_replaced(tmp_path):
    mine = tmp_path / "export"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="move it away"):
        export(mine)
    assert (mine / "thesis.tex").read_text() == "years of work"


def test_a_full_disk_leaves_the_old_export(tmp_path, monkeypatch):
    export(tmp_path / "export", weights_of(1))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretrain.convert.export.sync", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        export(tmp_path / "export", weights_of(2))
    assert same(read_weights(tmp_path / "export").tensors, weights_of(1))


def test_a_run_gives_its_newest_checkpoint_until_it_has_an_export(run):
    read = read_weights(run.path)
    assert same(read.tensors, weights_of(20))
    assert read.classes == CLASSES
    assert read.model == MODEL
    export(run.export_dir, weights_of(99))
    assert same(read_weights(run.path).tensors, weights_of(99))


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(run):
    flip_a_bit(run.checkpoints_dir / "step_00000020" / "rank_00000.safetensors")
    assert same(read_weights(run.path).tensors, weights_of(10))


def test_one_checkpoint_can_be_named(run, monkeypatch):
    checkpoint = run.checkpoints_dir / "step_00000010"
    read = read_weights(checkpoint)
    assert same(read.tensors, weights_of(10))
    assert (read.classes, read.model) == (CLASSES, MODEL)
    monkeypatch.chdir(run.checkpoints_dir)
    assert read_weights(checkpoint.relative_to(run.checkpoints_dir)).model == MODEL
    flip_a_bit(checkpoint / "rank_00000.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(checkpoint)


def test_a_run_without_a_sound_checkpoint_says_why(run):
    for path in run.checkpoints_dir.glob("*/rank_*"):
        flip_a_bit(path)
    with pytest.raises(CheckpointError) as caught:
        read_weights(run.path)
    assert "step_00000010" in str(caught.value)
    assert "step_00000020" in str(caught.value)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


def test_pickles_are_refused_unread(tmp_path):
    (tmp_path / "model.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match="expected an export, a run or a checkpoint"):
        read_weights(tmp_path / "model.pth")


def edit(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGE = {
    "a flipped bit": lambda export: flip_a_bit(export / "model.safetensors"),
    "a cut file": lambda export: (export / "model.safetensors").write_bytes(b""),
    "a newer version": lambda export: edit(export, format_version=2),
    "reordered classes": lambda export: edit(export, classes=list(CLASSES[::-1])),
    "a missing class": lambda export: edit(export, classes=list(CLASSES[:2])),
    "another model": lambda export: edit(export, model={"variant": "vit"}),
    "no weights": lambda export: edit(export, weights=None),
    "no JSON": lambda export: (export / "config.json").write_text("{"),
    "a list": lambda export: (export / "config.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_export_is_one_clear_line(tmp_path, damage):
    directory = export(tmp_path / "export")
    DAMAGE[damage](directory)
    with pytest.raises(CheckpointError) as caught:
        read_weights(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("kind", ["nothing", "an empty directory", "an unknown file"])
def test_what_is_no_weights_is_one_clear_line(tmp_path, kind):
    path = tmp_path / "there"
    if kind == "an empty directory":
        path.mkdir()
    elif kind == "an unknown file":
        path.write_text("hello")
    with pytest.raises(PretrainError) as caught:
        read_weights(path)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_another_programs_export_is_not_taken_for_ours(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "swin_tiny"}')
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="expected an export, a run or a checkpoint"):
        read_weights(tmp_path)
