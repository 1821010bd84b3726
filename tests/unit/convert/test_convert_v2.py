"""Swin V2 through the layouts that have a place for it, windows of an earlier training included."""

import itertools
import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_weights import CLASSES, LABELS, same, tiny_loaded

from pretrain.convert.layouts import to_layout
from pretrain.convert.read import load
from pretrain.convert.targets import DIRECTORIES
from pretrain.convert.verify import verify
from pretrain.convert.write import write
from pretrain.errors import ModelError
from pretrain.models.variants import shape_of

EARLIER = (3, 3, 3, 0)
PLACES = ("official", "timm", "huggingface", "torchvision", "mmdetection", "safetensors")


def v2(**changes):
    # Windows of 4: the last map, of 2, has smaller ones.
    return tiny_loaded(
        **{"variant": "swinv2_t", "window_size": 4, "pretrained_window_sizes": EARLIER, **changes}
    )


def put(loaded, directory, target, name):
    path = directory / (name if target in DIRECTORIES else f"{name}.pth")
    write(loaded, path, target, provenance={})
    return path


@pytest.mark.parametrize(
    ("first", "second"),
    itertools.product(("official", "timm", "huggingface", "mmdetection", "safetensors"), repeat=2),
)
def test_files_of_every_pair_round_trip(tmp_path, first, second):
    # mmpretrain's buffers show windows, and nothing the image.
    sizes = [64 if layout == "mmdetection" else None for layout in (first, second)]
    there = load(put(v2(), tmp_path, first, "one"), image_size=sizes[0])
    back = load(put(there, tmp_path, second, "two"), image_size=sizes[1])
    assert back.family == "swinv2"
    assert same(back.tensors, v2().tensors)
    assert back.model == v2().model
    assert (back.labels.ids, back.labels.names) == (CLASSES, LABELS.names)


@pytest.mark.parametrize("other", PLACES)
def test_torchvision_has_one_window_and_no_earlier_ones(tmp_path, other):
    plain = v2(window_size=2, pretrained_window_sizes=(0, 0, 0, 0))
    there = load(put(plain, tmp_path, "torchvision", "one"), image_size=64)
    back = load(put(there, tmp_path, other, "two"), image_size=64)
    assert same(back.tensors, plain.tensors)
    assert back.model == plain.model
    with pytest.raises(ModelError, match="earlier training"):
        put(v2(), tmp_path, "torchvision", "three")


def test_transformers_takes_it_without_a_word(tmp_path):
    for name, loaded in (("a", v2()), ("b", v2(pretrained_window_sizes=(0, 0, 0, 0)))):
        path = put(loaded, tmp_path, "huggingface", name)
        assert "float64 logits differ by" in verify(loaded, path, "huggingface")
    other = put(v2(), tmp_path, "huggingface", "c")
    config = json.loads((other / "config.json").read_text())
    config["pretrained_window_sizes"] = [0, 0, 0, 0]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="computes other logits"):
        verify(v2(), other, "huggingface")


def test_bare_weights_do_not_show_their_window(tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file(v2().tensors, path)
    with pytest.raises(ModelError, match="give both: --window TOKENS --image-size PIXELS"):
        load(path)
    read = load(path, image_size=64, window_size=4)
    assert read.model.window_size == 4
    assert read.model.pretrained_window_sizes == (0, 0, 0, 0)


def test_the_buffers_show_windows_and_earlier_windows(tmp_path):
    loaded = v2()
    tensors = to_layout(loaded.tensors, "official", "swinv2", shape_of(loaded.model))
    assert tensors["layers.0.blocks.0.attn.relative_coords_table"].shape == (1, 7, 7, 2)
    torch.save({"model": tensors}, tmp_path / "x.pth")
    assert load(tmp_path / "x.pth").model == loaded.model


def test_timms_name_shows_windows_and_earlier_windows(tmp_path):
    loaded = v2(pretrained_window_sizes=(3, 3, 3, 1))
    state = to_layout(loaded.tensors, "timm", "swinv2", shape_of(loaded.model))
    torch.save({"state_dict": state, "arch": "swinv2_x_window3to4_48to64"}, tmp_path / "x.pth")
    assert load(tmp_path / "x.pth").model == loaded.model
    torch.save({"state_dict": state}, tmp_path / "y.pth")
    read = load(tmp_path / "y.pth", image_size=64, window_size=4)
    assert read.model.pretrained_window_sizes == (0, 0, 0, 0)
    assert any("earlier training not stated" in note for note in read.notes)


def test_a_swin_mlp_stays_with_us(tmp_path):
    shape = {"variant": "swin_mlp_t_c24", "window_size": 2}
    path = put(tiny_loaded(**shape), tmp_path, "safetensors", "ours")
    assert same(load(path).tensors, tiny_loaded(**shape).tensors)
    with pytest.raises(ModelError, match="has no name for layers"):
        put(load(path), tmp_path, "timm", "theirs")
