"""What is written is what its readers expect, whole or not at all; and comes back bit for bit."""

import itertools
import json
import logging

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from tiny_weights import CLASSES, LABELS, NAMES, same, tiny_loaded
from transformers import AutoImageProcessor, AutoModelForImageClassification

from pretrain.convert.labels import Labels
from pretrain.convert.read import load
from pretrain.convert.targets import DIRECTORIES, TARGETS
from pretrain.convert.verify import verify
from pretrain.convert.write import write
from pretrain.errors import CheckpointError, ModelError
from pretrain.models.build import build


def place(directory, target, name="there", ending=".pth"):
    return directory / (name if target in DIRECTORIES else f"{name}{ending}")


def put(loaded, path, target):
    write(loaded, path, target, provenance={"converted_from": "tiny"})
    return path


@pytest.mark.parametrize(("first", "second"), itertools.product(TARGETS, TARGETS))
def test_files_of_every_pair_of_layouts_round_trip(tmp_path, first, second):
    loaded = tiny_loaded()
    there = load(put(loaded, place(tmp_path, first, "one"), first), image_size=64)
    back = load(put(there, place(tmp_path, second, "two"), second), image_size=64)
    assert same(back.tensors, loaded.tensors)
    assert back.model == loaded.model
    if "torchvision" not in (first, second):
        assert back.labels == LABELS
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("target", ["official", "torchvision", "mmdetection"])
def test_a_safetensors_file_keeps_labels_and_image_size(tmp_path, target):
    path = put(tiny_loaded(), place(tmp_path, target, ending=".safetensors"), target)
    read = load(path)
    assert same(read.tensors, tiny_loaded().tensors)
    assert (read.labels, read.model.image_size, read.layout) == (LABELS, 64, target)


def test_a_labelless_head_and_none_at_all(tmp_path):
    loaded = tiny_loaded(labels=Labels(None, None))
    for target in TARGETS:
        read = load(put(loaded, place(tmp_path, target, target), target), image_size=64)
        assert not read.labels, target
    bare = {name: value for name, value in loaded.tensors.items() if "head." not in name}
    headless = loaded._replace(tensors=bare)
    for target in TARGETS:
        path = place(tmp_path, target, f"headless_{target}")
        if target == "torchvision":
            with pytest.raises(ModelError, match="always have a head, these weights none"):
                put(headless, path, target)
            continue
        read = load(put(headless, path, target), image_size=64)
        assert same(read.tensors, bare), target
        assert not read.has_head
        assert read.model.num_classes == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_kept(tmp_path, dtype):
    loaded = tiny_loaded()
    tensors = {name: value.to(dtype) for name, value in loaded.tensors.items()}
    for target in TARGETS:
        path = put(loaded._replace(tensors=tensors), place(tmp_path, target, target), target)
        assert same(load(path, image_size=64).tensors, tensors)


class TestTransformers:
    """The directory in the library itself."""

    def test_it_loads_without_a_word_and_computes_the_same(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        path = put(tiny_loaded(), tmp_path / "hub", "huggingface")
        with caplog.at_level(logging.WARNING):
            model = AutoModelForImageClassification.from_pretrained(path)
        assert caplog.messages == []
        assert [model.config.id2label[row] for row in range(3)] == [
            "crane (n02012849)",
            "crane (n03126707)",
            "tench",
        ]
        assert model.config.label2id["tench"] == 2
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        ours = build(tiny_loaded().model).double().eval()
        ours.load_state_dict(tiny_loaded().tensors)
        with torch.no_grad():
            theirs = model.double().eval()(pixel_values=images).logits
            torch.testing.assert_close(theirs, ours(images), rtol=0, atol=1e-12)

    def test_what_version_4_stored_is_there(self, tmp_path):
        path = put(tiny_loaded(), tmp_path / "hub", "huggingface")
        with safe_open(path / "model.safetensors", framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            stored = [name for name in file.keys() if name.endswith("position_index")]  # noqa: SIM118
        assert len(stored) == 8

    def test_its_own_directories_are_read(self, tmp_path):
        path = put(tiny_loaded(), tmp_path / "hub", "huggingface")
        model = AutoModelForImageClassification.from_pretrained(path)
        model.save_pretrained(tmp_path / "version_4_names")
        model.save_pretrained(tmp_path / "version_5_names", save_original_format=False)
        model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
        assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
        layouts = set()
        for name in ("version_4_names", "version_5_names", "shards"):
            read = load(tmp_path / name)
            assert same(read.tensors, tiny_loaded().tensors)
            assert (read.labels.ids, read.labels.names) == (CLASSES, NAMES)
            layouts.add(read.layout)
        assert layouts == {"huggingface", "transformers5"}

    @pytest.mark.parametrize("resize", [74, None])
    def test_its_processor_makes_our_pixels(self, tmp_path, resize):
        preprocessing = {"image_size": 64, "resize": resize}
        path = put(
            tiny_loaded()._replace(preprocessing=preprocessing), tmp_path / "h", "huggingface"
        )
        processor = AutoImageProcessor.from_pretrained(path, use_fast=False)
        noise = torch.randint(0, 256, (90, 130, 3), dtype=torch.uint8)
        picture = Image.fromarray(noise.numpy())
        got = torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"])[0]
        if resize is None:
            expected = picture.resize((64, 64), Image.Resampling.BICUBIC)
        else:
            scaled = picture.resize((resize * 130 // 90, resize), Image.Resampling.BICUBIC)
            left, top = (scaled.width - 64) // 2, (resize - 64) // 2
            expected = scaled.crop((left, top, left + 64, top + 64))
        pixels = torch.tensor(list(expected.tobytes())).view(64, 64, 3).permute(2, 0, 1) / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        ours = (pixels - mean[:, None, None]) / std[:, None, None]
        assert (got - ours).abs().median() < 1e-5

    def test_the_card_is_one(self, tmp_path):
        path = put(tiny_loaded(), tmp_path / "hub", "huggingface")
        card = ModelCard.load(path / "README.md")
        assert card.data.library_name == "transformers"
        assert card.data.pipeline_tag == "image-classification"
        assert "converted_from" in card.text
        loaded = tiny_loaded(labels=Labels(None, None))
        bare = {name: value for name, value in loaded.tensors.items() if "head." not in name}
        preprocessing = {"image_size": 64, "resize": 74, "mean": [0.1] * 3, "std": [1.0] * 3}
        headless = loaded._replace(tensors=bare, preprocessing=preprocessing)
        card = ModelCard.load(put(headless, tmp_path / "encoder", "huggingface") / "README.md")
        assert card.data.pipeline_tag == "image-feature-extraction"
        assert f"{sum(value.numel() for value in bare.values()):,}" in card.text
        assert "mean 0.1, 0.1, 0.1" in card.text
        said = verify(headless, tmp_path / "encoder", "huggingface")
        assert "float64 features differ by" in said

    def test_verify_compares_both_precisions(self, tmp_path):
        path = put(tiny_loaded(), tmp_path / "hub", "huggingface")
        said = verify(tiny_loaded(), path, "huggingface")
        assert "verified in transformers" in said
        assert "float64" in said

    def test_verify_finds_other_weights(self, tmp_path):
        path = put(tiny_loaded(seed=1), tmp_path / "hub", "huggingface")
        with pytest.raises(ModelError, match="computes other logits in float32"):
            verify(tiny_loaded(), path, "huggingface")

    def test_verify_minds_a_warning(self, tmp_path):
        path = put(tiny_loaded(), tmp_path / "hub", "huggingface")
        config = json.loads((path / "config.json").read_text())
        config["depths"] = [2, 1, 4, 2]
        (path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="it warns"):
            verify(tiny_loaded(), path, "huggingface")


def test_verify_says_what_it_could_not_do(tmp_path):
    official = put(tiny_loaded(), tmp_path / "a.pth", "official")
    assert verify(tiny_loaded(), official, "official") == "read back bit for bit"
    with pytest.raises(ModelError, match="does not read back"):
        verify(tiny_loaded(seed=1), official, "official")
    timm = put(tiny_loaded(), tmp_path / "timm", "timm")
    said = verify(tiny_loaded(), timm, "timm")
    assert "timm" in said


def test_timms_config(tmp_path):
    path = put(tiny_loaded(), tmp_path / "timm", "timm")
    config = json.loads((path / "config.json").read_text())
    assert config["architecture"] == "swin_tiny_patch4_window7_224"
    assert config["model_args"] == {
        "window_size": 2,
        "img_size": 64,
        "embed_dim": 12,
        "depths": [2, 1, 3, 2],
        "num_heads": [1, 2, 3, 4],
    }
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 3
    assert config["label_names"] == list(CLASSES)
    assert config["label_descriptions"]["n01440764"] == "tench"


def test_nothing_is_replaced(tmp_path):
    for target in TARGETS:
        path = place(tmp_path, target, target)
        path.write_text("years of work")
        with pytest.raises(CheckpointError, match="exists"):
            put(tiny_loaded(), path, target)
        assert path.read_text() == "years of work"


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretrain.convert.write.sync", fail)
    for target in ("official", "timm"):
        with pytest.raises(CheckpointError, match="No space left"):
            put(tiny_loaded(), place(tmp_path, target, target), target)
    assert list(tmp_path.iterdir()) == []


def test_one_window_size_is_all_that_some_have_place_for(tmp_path):
    loaded = tiny_loaded(image_size=32)  # the last map is one token: a smaller window
    with pytest.raises(ModelError, match="one window size"):
        put(loaded, tmp_path / "there", "huggingface")
    read = load(put(loaded, tmp_path / "there", "timm"))
    assert same(read.tensors, loaded.tensors)


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("a.bin", "official", "expected a name in"),
        ("a.pth", "timm", "is a directory"),
        ("no/where.pth", "official", "make it first"),
    ],
)
def test_a_destination_that_cannot_be_is_refused(tmp_path, name, target, words):
    with pytest.raises((ModelError, CheckpointError), match=words):
        put(tiny_loaded(), tmp_path / name, target)
