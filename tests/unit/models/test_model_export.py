"""The networks outside Python: `torch.export` and ONNX, with any number of images."""

import importlib.util

import pytest
import torch
from tiny_swin import FAMILIES, randomized
from torch import Tensor

from pretrain.models.swin import Swin
from pretrain.models.variants import Family, Shape

TOLERANCE = 1e-4
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime: pip install 'swin-pretrain[export]'",
)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def network(family: Family) -> Swin:
    return randomized(Swin(Shape(12, (2, 1, 1, 1), (1, 2, 3, 6), 32, 4, 5, family=family))).eval()


def exported(model: Swin) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},))


@pytest.mark.parametrize("family", FAMILIES)
def test_exports_with_a_dynamic_batch_to_the_same_logits(family):
    model = network(family)
    program = exported(model).module()
    for count in (1, 2, 5):
        with torch.no_grad():
            assert torch.allclose(program(images(count)), model(images(count)), atol=TOLERANCE)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_runs_with_a_dynamic_batch_to_the_same_logits(family, tmp_path):
    import onnxruntime

    model = network(family)
    path = tmp_path / "model.onnx"
    torch.onnx.export(exported(model), dynamo=True, input_names=["images"]).save(str(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        (found,) = session.run(None, {"images": images(count).numpy()})
        with torch.no_grad():
            expected = model(images(count))
        assert torch.allclose(torch.from_numpy(found), expected, rtol=0, atol=TOLERANCE)
