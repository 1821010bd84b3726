"""Which weights are evaluated: what was asked for, or one line that says why not."""

from pathlib import Path

import pytest
import torch
from evaluated import HEAD_CLASSES, make_export

from pretrain import dist
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.schema import RunConfig
from pretrain.convert import read as convert_read
from pretrain.convert.export import Weights, Which, read_weights
from pretrain.errors import CheckpointError, ModelError
from pretrain.evaluate.recorded import preprocessing_of_recipe, read_recorded
from pretrain.evaluate.subject import load_subject, read_source
from pretrain.run_directory import RunDirectory
from pretrain.world import World

CPU = torch.device("cpu")


def save(run: RunDirectory, step: int, added: dict[str, float]) -> None:
    """A checkpoint of the run's weights, to which each kind has something added."""
    export = run.export_dir if run.export_dir.exists() else run.path.parent / "export"
    weights = read_weights(export)
    CheckpointStore(run.checkpoints_dir, world=World(), keep_last=2).save(
        step,
        {
            f"{kind}|{name}|0": tensor.flatten() + more
            for kind, more in added.items()
            for name, tensor in weights.tensors.items()
        },
        shapes={name: tuple(tensor.shape) for name, tensor in weights.tensors.items()},
        state={},
        samples_consumed=step,
        config_sha256="0" * 64,
        classes=HEAD_CLASSES,
    )


@pytest.fixture
def run(tmp_path, request):
    """A run whose checkpoint holds other weights than its export."""
    export = make_export(tmp_path / "export", HEAD_CLASSES)
    weights = read_weights(export)
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"path": "/data"},
            "model": weights.model,
            "optim": {"lr": 0.001},
            "schedule": {"epochs": 10},
            "batch": {"global_size": 8, "micro_size_max": 8},
            "eval": {"resize": 40},
        }
    )
    run = RunDirectory(tmp_path / "tiny")
    run.create(config, "{}")
    dist.initialize(World(), CPU, timeout_seconds=30)
    request.addfinalizer(dist.shutdown)
    save(run, 10, {"master": 1.0, "exp_avg": 0.0, "exp_avg_sq": 0.0})
    export.rename(run.export_dir)
    return run


def bias(weights):
    return weights.tensors["head.bias"]


def test_a_run_gives_its_export_unless_asked_for_the_weights_as_trained(run):
    exported = bias(read_weights(run.export_dir))
    assert torch.equal(bias(read_source(run.path, None).weights), exported)
    for path in (run.path, run.checkpoints_dir / "step_00000010"):
        weights = read_source(path, "raw").weights
        assert torch.equal(bias(weights), exported + 1)
        assert weights.classes == HEAD_CLASSES
        assert weights.model is not None


@pytest.mark.parametrize("what", ["run", "checkpoint", "export"])
def test_an_average_that_was_not_kept_is_one_clear_line(run, what):
    path = {
        "run": run.path,
        "checkpoint": run.checkpoints_dir / "step_00000010",
        "export": run.export_dir,
    }[what]
    with pytest.raises(ModelError, match=r"has no ema weights|holds raw weights only") as caught:
        read_source(path, "ema")
    assert "\n" not in str(caught.value)


def test_a_kept_average_is_taken(run):
    """Also by conversion, which reads the same."""
    save(run, 20, {"master": 1.0, "exp_avg": 0.0, "exp_avg_sq": 0.0, "ema": 2.0})
    exported = bias(read_weights(run.export_dir))
    for path in (run.path, run.checkpoints_dir / "step_00000020"):
        for which, more in (("raw", 1), ("ema", 2)):
            assert torch.equal(bias(read_source(path, which).weights), exported + more)
            assert torch.equal(bias(convert_read.load(path, choice=which)), exported + more)
    assert torch.equal(bias(convert_read.load(run.path)), exported)
    with pytest.raises(ModelError, match="holds raw weights only"):
        convert_read.load(run.export_dir, choice="ema")


@pytest.mark.parametrize(("kind", "which"), [("ema", "ema"), ("master", "raw")])
def test_an_export_says_which_weights_it_holds(run, kind, which):
    path = run.export_dir / "config.json"
    path.write_text(path.read_text().replace('"run": "tiny"', f'"weights": "{kind}"'))
    for asked in (None, which):
        assert read_source(run.export_dir, asked).which == which
    other: Which = "raw" if which == "ema" else "ema"
    with pytest.raises(ModelError, match=f"holds {which} weights only, not {other}"):
        read_source(run.export_dir, other)


def test_a_run_without_a_sound_checkpoint_says_why(run):
    for path in run.checkpoints_dir.glob("*/rank_*"):
        path.write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="expected a sound checkpoint, found none") as caught:
        read_source(run.path, "raw")
    assert "step_00000010" in str(caught.value)


def test_preprocessing_is_that_of_the_export_or_of_the_run(run):
    exported = read_recorded(run.path).preprocessing
    assert exported is not None
    assert exported.resize == 36
    trained = read_recorded(run.checkpoints_dir / "step_00000010").preprocessing
    assert trained is not None
    assert (trained.image_size, trained.resize) == (32, 40)


def test_recipes_cut_the_centre_at_224_and_squash_at_384():
    assert preprocessing_of_recipe(224).resize == 256
    assert preprocessing_of_recipe(384).resize is None


def test_an_edited_export_is_one_clear_line(run):
    path = run.export_dir / "config.json"
    path.write_text(path.read_text().replace('"resize": 36', '"resize": "36"'))
    with pytest.raises(CheckpointError, match=r"config\.json: damaged or edited") as caught:
        read_recorded(run.export_dir)
    assert "\n" not in str(caught.value)


def load(weights, classes=None):
    return load_subject(weights, Path("export"), classes=classes, image_size=None, device=CPU)


@pytest.mark.parametrize("lacks", ["model", "classes"])
def test_weights_that_do_not_say_what_they_are_are_refused(run, lacks):
    weights = read_weights(run.export_dir)._replace(**{lacks: None})
    with pytest.raises(ModelError, match=r"does not say (which model|the WordNet ids)"):
        load(weights)


def test_who_knows_the_classes_of_weights_that_do_not_say_can_say_so(run):
    weights = read_weights(run.export_dir)
    nameless = weights._replace(classes=None)
    assert load(nameless, HEAD_CLASSES).classes == HEAD_CLASSES
    assert load(weights, HEAD_CLASSES).classes == HEAD_CLASSES
    with pytest.raises(ModelError, match="says its classes itself"):
        load(weights, HEAD_CLASSES[::-1])
    with pytest.raises(ModelError, match="got 7 ids for a head of 8 rows"):
        load(nameless, HEAD_CLASSES[1:])


def test_weights_of_another_network_are_refused(run):
    weights = read_weights(run.export_dir)
    strange = {**weights.tensors, "norm.weight": torch.ones(3)}
    with pytest.raises(ModelError, match="do not fit the model"):
        load(Weights(strange, weights.classes, weights.model))


def test_the_official_file_is_read_too_and_gives_what_the_export_gives(run, tmp_path):
    weights = read_weights(run.export_dir)
    averaged = {name: tensor + 1 for name, tensor in weights.tensors.items()}
    path = tmp_path / "official.pth"
    torch.save({"model": weights.tensors, "model_ema": averaged, "epoch": 3}, path)
    choices: list[tuple[Which | None, str]] = [(None, "raw"), ("raw", "raw"), ("ema", "ema")]
    for asked, which in choices:
        source = read_source(path, asked)
        assert source.which == which
        assert torch.equal(bias(source.weights), bias(weights) + (which == "ema"))
    raw = read_source(path, None).weights
    with pytest.raises(ModelError, match=r"does not say the WordNet ids .* give --classes FILE"):
        load(raw)
    given = load(raw, HEAD_CLASSES)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = load(weights).logits_of(CPU, "fp32")(images)
    assert torch.equal(given.logits_of(CPU, "fp32")(images), expected)


def test_a_backbone_has_no_accuracy(run, tmp_path):
    weights = read_weights(run.export_dir)
    body = {name: t for name, t in weights.tensors.items() if not name.startswith("head.")}
    torch.save(body, tmp_path / "body.pth")
    with pytest.raises(ModelError, match="has no classifier"):
        load(read_source(tmp_path / "body.pth", None).weights)
