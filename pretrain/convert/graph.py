"""ONNX graphs: weights and network in one file, for programs without torch. Optional packages."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from pretrain.convert.read import Loaded
from pretrain.errors import ModelError
from pretrain.models.build import build

_INPUT, _OUTPUT = "images", "logits"
_PACKAGES = ("onnx", "onnxscript")


def write_onnx(loaded: Loaded, path: Path) -> None:
    """Write the network with any number of images at its own image size, in fp32.

    The input ``images`` is float [B, 3, H, W], normalised; the output ``logits`` is [B, Y]. Class
    ids and names go to the model's metadata.

    Raises:
        ModelError: there is no head, or the packages for ONNX are not installed.
        OSError: the file cannot be written.
    """
    if not loaded.has_head:
        raise ModelError("onnx: a graph ends in logits, these weights have no head")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise ModelError(f"onnx: without {names}; pip install 'swin-pretrain[export]'")
    network = build(loaded.model)
    network.load_state_dict(loaded.tensors)
    side = loaded.model.image_size
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        network.float().eval(), (torch.zeros(2, 3, side, side),), dynamic_shapes=({0: batch},)
    )
    graph: Any = torch.onnx.export(
        program, dynamo=True, input_names=[_INPUT], output_names=[_OUTPUT], verbose=False
    )
    for key, values in (("classes", loaded.labels.ids), ("class_names", loaded.labels.names)):
        if values is not None:
            graph.model.metadata_props[key] = json.dumps(values)
    graph.save(str(path), external_data=False)


def open_onnx(path: Path) -> Any:
    """Return a function from float images [B, 3, H, W] to logits [B, Y], both fp32 on the CPU.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    import onnxruntime  # type: ignore[import-not-found]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {_INPUT: images.float().numpy()})[0])
