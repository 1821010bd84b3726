"""A run starts from any layout exactly as from our export of the same weights."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import save_file
from tiny_weights import CLASSES, LABELS, same, tiny_loaded, tiny_model, tiny_weights

from pretrain import dist
from pretrain.convert.labels import Labels
from pretrain.convert.layouts import to_layout
from pretrain.convert.targets import DIRECTORIES
from pretrain.convert.write import write
from pretrain.errors import ModelError
from pretrain.initial_weights import load_initial_weights
from pretrain.models.build import build
from pretrain.models.variants import shape_of
from pretrain.world import World

OTHER_ORDER = (CLASSES[2], "n09999999", CLASSES[0])


@pytest.fixture(autouse=True)
def alone():
    dist.initialize(World(), torch.device("cpu"), timeout_seconds=30)
    yield
    dist.shutdown()


def start(path, order=CLASSES, model=None, **fields):
    """Weights of a run that starts from ``path``, and the event about it."""
    model = model or tiny_model(num_classes=len(order))
    config: Any = SimpleNamespace(
        init_from=str(path),
        model=model,
        **{f"init_{name}": fields.get(name) for name in FIELDS},
    )
    job: Any = SimpleNamespace(
        config=config, world=World(), manifest=SimpleNamespace(classes=order)
    )
    torch.manual_seed(0)
    network, recorder = build(model), MagicMock()
    load_initial_weights(job, network, recorder)
    recorder.event.assert_called_once()
    return network.state_dict(), recorder.event.call_args.kwargs


FIELDS = ("classes", "weights", "image_size", "window_size")


def refused(path, **how):
    with pytest.raises(ModelError) as caught:
        start(path, **how)
    text = str(caught.value)
    assert text.startswith("init_from: ")
    assert "\n" not in text
    return text


def put(loaded, directory, target, name="there"):
    path = directory / (name if target in DIRECTORIES else f"{name}.pth")
    write(loaded, path, target, provenance={})
    return path


def deepspeed(directory):
    folder = directory / "global_step1"
    folder.mkdir(parents=True)
    (directory / "latest").write_text("global_step1")
    torch.save({"module": tiny_weights()}, folder / "mp_rank_00_model_states.pt")
    return directory


def bare(directory):
    save_file(tiny_weights(), directory / "bare.safetensors")
    return directory / "bare.safetensors"


@pytest.mark.parametrize(
    "layout",
    ["official", "timm", "huggingface", "torchvision", "mmdetection", "deepspeed", "bare"],
)
def test_every_layout_starts_as_our_export(tmp_path, layout):
    makers = {"deepspeed": lambda: deepspeed(tmp_path / "zero"), "bare": lambda: bare(tmp_path)}
    path = makers.get(layout, lambda: put(tiny_loaded(), tmp_path, layout))()
    silent = layout in ("torchvision", "deepspeed", "bare")
    listed = tmp_path / "classes.txt"
    listed.write_text("".join(f"{label}\n" for label in CLASSES))
    ours = put(tiny_loaded(), tmp_path, "safetensors", "ours")
    for order in (CLASSES, OTHER_ORDER):
        expected, _ = start(ours, order)
        got, event = start(path, order, classes=str(listed) if silent else None)
        assert same(got, expected)
        assert event["head"] == ("copied" if order == CLASSES else "mapped")
        assert event["source"] == str(path)
        assert event["model"] == "swin_t, 64 pixels, window 2"
    assert torch.equal(got["head.weight"][0], tiny_weights()["head.weight"][2])
    if silent:
        got, event = start(path)
        assert not got["head.weight"].any()
        assert same({**got, **heads(expected)}, expected)
        assert "does not say which class each of its rows is" in event["changes"]


def heads(weights):
    return {name: value for name, value in weights.items() if name.startswith("head.")}


def official_simmim(weights):
    inside = {f"encoder.{name}": value for name, value in weights.items()}
    decoder = {"decoder.0.weight": torch.ones(4, 4), "decoder.0.bias": torch.ones(4)}
    return {"model": {**inside, "encoder.mask_token": torch.ones(1, 1, 12), **decoder}}


def mmpretrain_simmim(weights):
    there = to_layout(weights, "mmdetection", "swin", shape_of(tiny_model()))
    others = {"neck.decoder.0.weight": torch.ones(4, 4)}
    return {"state_dict": {**there, "backbone.mask_token": torch.ones(1, 1, 12), **others}}


def ours_masked(weights):
    inside = {f"encoder.{name}": value for name, value in weights.items()}
    return {**inside, "mask_token": torch.ones(12), "decoder.weight": torch.ones(4, 4, 1, 1)}


def detector(weights):
    there = to_layout(weights, "mmdetection", "swin", shape_of(tiny_model()))
    return {"state_dict": {**there, "neck.x": torch.ones(2), "roi_head.y": torch.ones(2)}}


@pytest.mark.parametrize("make", [official_simmim, mmpretrain_simmim, ours_masked, detector])
def test_weights_without_a_head_start_a_fresh_one(tmp_path, make):
    weights = {n: value for n, value in tiny_weights().items() if not n.startswith("head.")}
    torch.save(make(weights), tmp_path / "x.pth")
    got, event = start(tmp_path / "x.pth")
    assert not got.pop("head.weight").any()
    assert not got.pop("head.bias").any()
    assert same(got, weights)
    assert event["head"] == "fresh"
    assert "the source has none" in event["changes"]
    masked = make is not detector
    assert ("masked-image pre-training: left out" in event["changes"]) == masked
    listed = tmp_path / "classes.txt"
    listed.write_text("\n".join(CLASSES))
    assert "expected classes of a head" in refused(tmp_path / "x.pth", classes=str(listed))


def test_fields_say_what_bare_v2_weights_do_not(tmp_path):
    shape = {"variant": "swinv2_t", "window_size": 4}
    save_file(tiny_weights(**shape), tmp_path / "v2.safetensors")
    model = tiny_model(**shape)
    text = refused(tmp_path / "v2.safetensors", model=model)
    assert "give both: init_window_size=TOKENS init_image_size=PIXELS" in text
    got, event = start(tmp_path / "v2.safetensors", model=model, image_size=64, window_size=4)
    assert same({**got, **heads(tiny_weights(**shape))}, tiny_weights(**shape))
    assert "windows of an earlier training not stated" in event["changes"]


def test_averaged_weights_and_another_window_on_request(tmp_path):
    both = {"model": tiny_weights(), "model_ema": tiny_weights(1), "classes": list(CLASSES)}
    torch.save(both, tmp_path / "x.pth")
    assert same(start(tmp_path / "x.pth")[0], tiny_weights())
    assert same(start(tmp_path / "x.pth", weights="ema")[0], tiny_weights(1))
    got, event = start(tmp_path / "x.pth", model=tiny_model(window_size=4, image_size=128))
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert got[table].shape == (49, 1)
    assert "tables resized" in event["changes"]


def test_given_classes_go_before_the_sources(tmp_path):
    path = put(tiny_loaded(labels=Labels(OTHER_ORDER, OTHER_ORDER)), tmp_path, "timm")
    listed = tmp_path / "classes.txt"
    listed.write_text("\n".join(CLASSES))
    got, event = start(path, classes=str(listed))
    assert same(got, tiny_weights())
    assert "the source names others" in event["changes"]


def bad_html(path):
    path.write_bytes(b"\x80<html>")


def bad_shape(path):
    torch.save(tiny_weights(depths=(2, 1, 2, 2)), path)


def bad_weight(path):
    torch.save({**tiny_weights(), "extra.weight": torch.ones(2)}, path)


def bad_code(path):
    torch.save({"model": tiny_weights(), "hook": refused}, path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (bad_html, "cannot be read"),
        (bad_shape, "weights of a Swin V1 of 12 channels, depths 2 1 2 2"),
        (bad_weight, "1 unknown: extra.weight"),
        (bad_code, "would run code"),
    ],
)
def test_what_torch_shows_is_refused_in_one_line(tmp_path, spoil, words):
    spoil(tmp_path / "x.pth")
    assert words in refused(tmp_path / "x.pth")


def test_a_class_list_of_another_length_is_refused(tmp_path):
    listed = tmp_path / "classes.txt"
    listed.write_text("n1\nn2\n")
    path = put(tiny_loaded(labels=LABELS), tmp_path, "official")
    assert "expected 3 classes, one per row, got 2" in refused(path, classes=str(listed))
