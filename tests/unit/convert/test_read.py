"""Whatever holds a Swin is told and read; whatever does not is refused in one line."""

import argparse
import datetime
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from tiny_weights import CLASSES, NAMES, same, tiny_loaded, tiny_model, tiny_weights

from pretrain.convert.layouts import to_layout
from pretrain.convert.pickles import Placeholder, load_pickled
from pretrain.convert.read import load
from pretrain.convert.write import write
from pretrain.errors import PretrainError
from pretrain.models.variants import shape_of

SHAPE = shape_of(tiny_model())


class Node(dict):
    """Like yacs' config node: a dict with attributes besides."""

    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__["__immutable__"] = True


@pytest.fixture
def yacs(monkeypatch):
    """A module yacs.config for the time of pickling."""
    module = types.ModuleType("yacs.config")
    Node.__module__, Node.__qualname__, Node.__name__ = "yacs.config", "CfgNode", "CfgNode"
    module.CfgNode = Node
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    return module


def torch_file(path, value, **how):
    torch.save(value, path, **how)
    return path


def refused(path, **how):
    with pytest.raises(PretrainError) as caught:
        load(path, **how)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text or str(path.parent) in text
    return text


class Member:
    """A member of an enumeration as Python 3.11.0 to 3.11.3 write it."""

    def __reduce__(self):
        return getattr, (datetime.timezone, "utc")


def test_members_of_enumerations_are_not_looked_up(tmp_path):
    torch.save({"model": tiny_weights(), "stage": Member()}, tmp_path / "a.pth")
    held = load_pickled(tmp_path / "a.pth")
    assert isinstance(held["stage"], Placeholder)
    assert same(held["model"], tiny_weights())


@pytest.mark.parametrize("legacy", [False, True])
def test_an_official_file_with_its_config_object(tmp_path, yacs, legacy, monkeypatch):
    config = Node(
        DATA=Node(IMG_SIZE=64), MODEL=Node(SWIN=Node(WINDOW_SIZE=2), NUM_CLASSES=3), OUT="x"
    )
    whole = {
        "model": to_layout(tiny_weights(), "official", "swin", SHAPE),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": []},
        "lr_scheduler": {"values": [1.0]},
        "max_accuracy": 81.2,
        "epoch": 299,
        "config": config,
        "arguments": argparse.Namespace(cfg="a.yaml"),
    }
    path = torch_file(tmp_path / "swin.pth", whole, _use_new_zipfile_serialization=not legacy)
    monkeypatch.undo()
    assert "yacs.config" not in sys.modules
    held = load_pickled(path)
    assert held["config"]["DATA"]["IMG_SIZE"] == 64
    assert isinstance(held["arguments"], Placeholder)
    read = load(path)
    assert same(read.tensors, tiny_weights())
    assert (read.layout, read.model) == ("official", tiny_model())
    assert not any("not stated" in note for note in read.notes)


def ema(weights):
    return {"module." + name: value for name, value in weights.items()} | {
        "n_averaged": torch.tensor(7)
    }


WRAPPERS = {
    "bare": lambda raw, _: raw,
    "model": lambda raw, _: {"model": raw, "epoch": 3},
    "state_dict": lambda raw, _: {"state_dict": raw},
    "both containers": lambda raw, _: {"model": {"state_dict": raw}},
    "module.": lambda raw, _: {f"module.{name}": value for name, value in raw.items()},
    "_orig_mod.": lambda raw, _: {f"_orig_mod.{name}": value for name, value in raw.items()},
    "module._orig_mod.": lambda raw, _: {
        "model": {f"module._orig_mod.{name}": value for name, value in raw.items()}
    },
    "model.": lambda raw, _: {"state_dict": {f"model.{n}": value for n, value in raw.items()}},
    "timm's": lambda raw, other: {"state_dict": raw, "state_dict_ema": other, "arch": "swin"},
    "mmengine's": lambda raw, other: {"state_dict": raw, "ema_state_dict": ema(other)},
    "model_ema": lambda raw, other: {"model": raw, "model_ema": other},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("layout", ["official", "timm", "mmdetection"])
def test_usual_wrappers_are_taken_off(tmp_path, wrapper, layout):
    raw, other = (to_layout(tiny_weights(seed), layout, "swin", SHAPE) for seed in (0, 1))
    path = torch_file(tmp_path / "x.pth", WRAPPERS[wrapper](raw, other))
    read = load(path, image_size=64)
    assert same(read.tensors, tiny_weights())
    assert read.layout == layout
    averaged = "ema" in wrapper or wrapper in ("timm's", "mmengine's")
    if averaged:
        assert any("took" in note for note in read.notes)
        assert same(load(path, image_size=64, choice="ema").tensors, tiny_weights(1))
        assert same(load(path, image_size=64, choice="raw").tensors, tiny_weights())
    else:
        assert "no ema weights" in refused(path, image_size=64, choice="ema")


def test_averaged_weights_alone_are_taken(tmp_path):
    path = torch_file(tmp_path / "x.pth", {"model_ema": tiny_weights(1), "epoch": 3})
    assert same(load(path, image_size=64).tensors, tiny_weights(1))
    assert "no raw weights" in refused(path, image_size=64, choice="raw")


def test_image_size_from_masks_or_by_assumption(tmp_path):
    masks = torch_file(tmp_path / "a.pth", to_layout(tiny_weights(), "official", "swin", SHAPE))
    assert load(masks).model.image_size == 64
    bare = torch_file(tmp_path / "b.pth", tiny_weights())
    read = load(bare)
    assert read.model.image_size == 64
    assert "not stated" in read.notes[0]
    assert load(bare, image_size=128).model.image_size == 128
    assert "give the size trained on" in refused(bare, image_size=32)


def test_a_published_variant_is_named(tmp_path):
    weights = tiny_weights(
        variant="swin_s", embed_dim=None, depths=None, heads=None, window_size=7, image_size=224
    )
    path = tmp_path / "x.safetensors"
    save_file(weights, path)
    model = load(path).model
    assert (model.variant, model.embed_dim, model.image_size) == ("swin_s", None, 224)


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.bottom_up."])
def test_a_detectors_backbone_is_taken_out(tmp_path, prefix):
    weights = {n: t for n, t in tiny_weights().items() if not n.startswith(("norm.", "head."))}
    norms = {
        f"norm{i}.{leaf}": torch.ones(12 * 2**i) for i in range(4) for leaf in ("weight", "bias")
    }
    detector = {prefix + name: value for name, value in {**weights, **norms}.items()}
    detector |= {"neck.conv.weight": torch.ones(2), "roi_head.fc.weight": torch.ones(2)}
    read = load(torch_file(tmp_path / "x.pth", {"state_dict": detector}), image_size=64)
    assert read.tensors.keys() == weights.keys() | {"norm.weight", "norm.bias"}
    assert not read.has_head
    assert any("detector" in note for note in read.notes)


def test_mmengines_meta_names_the_classes(tmp_path):
    state = to_layout(tiny_weights(), "mmdetection", "swin", SHAPE)
    whole = {"meta": {"dataset_meta": {"classes": list(NAMES)}}, "state_dict": state}
    read = load(torch_file(tmp_path / "x.pth", whole), image_size=64)
    assert (read.labels.ids, read.labels.names) == (None, NAMES)


# What is no checkpoint


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


def zipped(entries, compression=zipfile.ZIP_STORED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, value in entries.items():
            archive.writestr(name, value)
    return content.getvalue()


def saved(value):
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def bomb_in_torchs_zip():
    return zipped({"x/data.pkl": pickle.dumps({"model": Bomb()}, 2), "x/version": "3"})


def safetensors_bytes():
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


FILES = {
    "zero bytes": (lambda: b"", "an empty file"),
    "nothing but zeros": (lambda: bytes(4096), "zeros"),
    "HTML": (lambda: b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
    "HTML with a blank line": (lambda: b"\n <html><head>", "a web page"),
    "a Git LFS pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "git lfs pull",
    ),
    "text": (lambda: b"hello there", "text that begins 'hello there'"),
    "gzip": (lambda: b"\x1f\x8b" + os.urandom(64), "unpack it first"),
    "a picture": (lambda: b"\x89PNG" + os.urandom(64), "a picture"),
    "noise": (lambda: b"\x01" + os.urandom(600), "unknown format"),
    "a zip bomb": (
        lambda: zipped({"x/data.pkl": bytes(10**7)}, zipfile.ZIP_DEFLATED),
        "unfolds to more",
    ),
    "another zip": (lambda: zipped({"a.txt": "hello"}), "not one that torch.save wrote"),
    "TorchScript": (lambda: zipped({"x/code/a.py": "pass", "x/data.pkl": "."}), "TorchScript"),
    "a pickle with code": (lambda: pickle.dumps(Bomb(), 2), "pytest"),
    "a newer pickle with code": (lambda: pickle.dumps(Bomb(), 4), "it names _pytest"),
    "a pickle of os.system": (
        lambda: b"\x80\x02cposix\nsystem\nX\x02\0\0\0ls\x85R.",
        "posix.system",
    ),
    "torch's zip with code": (bomb_in_torchs_zip, "would run code, so it is not read; it names"),
    "a whole model": (lambda: saved(torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
    "a plain pickle": (lambda: pickle.dumps({"a": 1}, 2), "pickle"),
    "a list": (lambda: saved([torch.ones(2)]), "got a list"),
    "no tensors": (lambda: saved({"epoch": 3, "name": "swin"}), "expected tensors, got 'epoch'"),
    "truncated torch": (lambda: saved(tiny_weights())[:5000], "cut off"),
    "truncated safetensors": (lambda: safetensors_bytes()[:-4], "cut off"),
    "a cut header": (lambda: safetensors_bytes()[:20], "cut off"),
    "a view of more than it has": (
        lambda: saved({"head.weight": torch.ones(1).expand(10**6, 10**6)}),
        "unfolds from fewer bytes",
    ),
    "sparse tensors": (lambda: saved({"a": torch.eye(3).to_sparse()}), "sparse"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path, name):
    content, words = FILES[name]
    path = tmp_path / "file.pth"
    path.write_bytes(content())
    assert words in refused(path)


OTHERS = {
    "ViT": ({"cls_token": 1, "blocks.0.attn.qkv.weight": 3, "pos_embed": 1}, "a vision transf"),
    "ResNet": ({"conv1.weight": 4, "layer1.0.conv1.weight": 4, "fc.weight": 2}, "a ResNet"),
    "ConvNeXt": ({"downsample_layers.0.0.weight": 4, "stages.0.0.gamma": 1}, "a ConvNeXt"),
    "something": ({"foo.bar": 1, "foo.baz": 1}, "tensors are called foo.bar, foo.baz"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_is_named(tmp_path, name):
    shapes, words = OTHERS[name]
    weights = {name: torch.ones((2,) * ndim) for name, ndim in shapes.items()}
    assert words in refused(torch_file(tmp_path / "x.pth", weights))


def test_a_swin_mlp_is_not_taken_for_a_swin(tmp_path):
    weights = {
        name.replace("attn.relative_position_bias_table", "spatial_mlp.weight"): value
        for name, value in tiny_weights().items()
    }
    text = refused(torch_file(tmp_path / "x.pth", weights), image_size=64)
    assert "relative_position_bias_table" in text or "Swin-MLP" in text


def without(*names):
    return lambda w: {name: value for name, value in w.items() if not name.startswith(names)}


def changed(name, change):
    return lambda w: {**w, name: change(w[name])}


FC1 = "layers.2.blocks.1.mlp.fc1.weight"
FAULTS = {
    "missing": (without("layers.2.blocks.1.norm"), "4 missing: layers.2.blocks.1.norm1.weight"),
    "a missing block": (without("layers.2.blocks.1"), "13 missing"),
    "a missing stage": (without("layers.3"), "not the whole of a Swin"),
    "extra": (lambda w: {**w, "extra.weight": torch.ones(2)}, "1 unknown: extra.weight"),
    "position embedding": (
        lambda w: {**w, "absolute_pos_embed": torch.ones(1, 256, 12)},
        "absolute position embeddings are not supported",
    ),
    "another shape": (
        changed(FC1, lambda t: t[:, :-1]),
        f"{FC1} (got (192, 47), expected (192, 48))",
    ),
    "NaN": (changed(FC1, lambda t: t * float("nan")), f"1 not finite: {FC1}"),
    "infinite": (changed(FC1, lambda t: t / 0), "not finite"),
    "float8": (changed(FC1, lambda t: t.to(torch.float8_e4m3fn)), "float8_e4m3fn"),
    "integers": (changed(FC1, lambda t: t.to(torch.int8)), "int8"),
    "complex": (changed(FC1, lambda t: t.to(torch.complex64)), "complex64"),
    "half a head": (without("head.bias"), "1 missing: head.bias"),
    "an even table": (
        changed("layers.0.blocks.0.attn.relative_position_bias_table", lambda t: t[:4]),
        "expected (2M-1)²",
    ),
    "heads that do not divide": (
        changed(
            "layers.1.blocks.0.attn.relative_position_bias_table", lambda t: t.repeat(1, 3)[:, :5]
        ),
        "expected a divisor",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_weights_that_are_not_whole_are_one_summary(tmp_path, name):
    change, words = FAULTS[name]
    text = refused(torch_file(tmp_path / "x.pth", change(tiny_weights())), image_size=64)
    assert words in text
    assert len(text) < 1000


def hub(tmp_path, target="huggingface"):
    path = tmp_path / "hub"
    write(tiny_loaded(), path, target, provenance={})
    return path


def edit(path, **changes):
    config = {**json.loads((path / "config.json").read_text()), **changes}
    (path / "config.json").write_text(json.dumps(config))


HUB_FAULTS = {
    "depths": ({"depths": [2, 2, 6, 2]}, "depths: the config beside the weights says (2, 2, 6, 2)"),
    "width": ({"embed_dim": 96}, "embed_dim: the config beside the weights says 96"),
    "heads": ({"num_heads": [3, 6, 12, 24]}, "heads"),
    "window": ({"window_size": 4}, "resizes the tables"),
    "architecture": ({"model_type": "vit"}, "its config.json says 'vit'"),
}


@pytest.mark.parametrize("name", HUB_FAULTS)
def test_a_config_of_another_model_is_refused(tmp_path, name):
    changes, words = HUB_FAULTS[name]
    path = hub(tmp_path)
    edit(path, **changes)
    assert words in refused(path)


def test_a_missing_shard_is_named(tmp_path):
    path = hub(tmp_path)
    (path / "model.safetensors").unlink()
    names = dict.fromkeys(tiny_weights(), "model-00002-of-00002.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert "1 of 1 shards are missing: model-00002-of-00002" in refused(path)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../x.safetensors")}))
    assert "expected files beside it" in refused(path)
    index.write_text("[]")
    assert "not an index" in refused(path)
    index.unlink()
    (path / "model-00001-of-00002.safetensors").write_bytes(safetensors_bytes())
    assert "copy it too" in refused(path)


def test_a_directory_of_nothing_and_nothing_at_all(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "found none of them" in refused(tmp_path / "empty")
    assert "found nothing there" in refused(tmp_path / "absent")


def test_labels_of_timm_and_a_plain_pickle_in_the_hub(tmp_path):
    path = hub(tmp_path, "timm")
    assert load(path).labels == (CLASSES, NAMES)
    (path / "model.safetensors").unlink()
    torch_file(path / "pytorch_model.bin", to_layout(tiny_weights(), "timm", "swin", SHAPE))
    read = load(path)
    assert same(read.tensors, tiny_weights())
    assert (read.layout, read.labels) == ("timm", (CLASSES, NAMES))
