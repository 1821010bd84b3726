"""ONNX: the same logits where its packages are, one line where they are not."""

import importlib.util
import json

import pytest
from tiny_weights import CLASSES, tiny_loaded

from pretrain.convert.verify import verify
from pretrain.convert.write import write
from pretrain.errors import ModelError

INSTALLED = all(importlib.util.find_spec(n) for n in ("onnx", "onnxscript", "onnxruntime"))


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs pip install 'swin-pretrain[export]'")
@pytest.mark.parametrize("variant", ["swin_t", "swinv2_t"])
def test_the_graph_computes_the_same_and_names_its_classes(tmp_path, variant):
    import onnx

    loaded, path = tiny_loaded(variant=variant), tmp_path / "swin.onnx"
    write(loaded, path, "onnx", provenance={})
    assert "verified in onnxruntime: float32 logits differ by" in verify(loaded, path, "onnx")
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(said["classes"]) == list(CLASSES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["swin.onnx"]


@pytest.mark.skipif(INSTALLED, reason="the packages are installed")
def test_without_the_packages_it_says_what_to_install(tmp_path):
    with pytest.raises(ModelError, match=r"pip install 'swin-pretrain\[export\]'"):
        write(tiny_loaded(), tmp_path / "swin.onnx", "onnx", provenance={})
    assert list(tmp_path.iterdir()) == []


def test_the_name_says_that_it_is_a_graph(tmp_path):
    with pytest.raises(ModelError, match=r"expected a name in \.onnx"):
        write(tiny_loaded(), tmp_path / "swin.pth", "onnx", provenance={})
