"""Whether a result computes in its own library what the source does here."""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.convert.graph import open_onnx
from pretrain.convert.read import Loaded, load
from pretrain.convert.write import Target
from pretrain.errors import ModelError
from pretrain.models.build import build
from pretrain.models.variants import shape_of

FP32_TOLERANCE = 1e-4
"""Largest difference of a logit, over the largest logit, in fp32: sums in another order."""
FP64_TOLERANCE = 1e-10
"""The same in fp64, where only a different network can differ by more."""
_IMAGES = 2
_LIBRARIES: dict[Target, str] = {
    "timm": "timm",
    "huggingface": "transformers",
    "torchvision": "torchvision",
    "mmdetection": "mmdet",
    "onnx": "onnxruntime",
}


def verify(loaded: Loaded, destination: Path, target: Target) -> str:
    """Compare logits of the same images, here and in the library that the layout is for.

    Args:
        loaded: what was converted.
        destination: the result.
        target: its layout.

    Returns:
        One sentence: the differences and where they were measured, or why nothing was.

    Raises:
        ModelError: the library does not take the result, or computes something else with it.
    """
    if not loaded.has_head:
        return "not verified: without a head there are no logits to compare"
    library = _LIBRARIES.get(target)
    if library is None:
        return _read_back(loaded, destination)
    if importlib.util.find_spec(library) is None:
        read_back = "" if target == "onnx" else f"; {_read_back(loaded, destination)}"
        return f"not verified: {library} is not installed here{read_back}"
    if target == "mmdetection":
        return f"not verified: detectors have no logits; {_read_back(loaded, destination)}"
    openers = {"timm": _open_timm, "huggingface": _open_huggingface, "onnx": _open_graph}
    opener = openers.get(target, _open_torchvision)
    try:
        theirs = opener(loaded, destination)
    except ImportError as error:
        return f"not verified: {library} cannot be imported here ({error})"
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{destination}: {library} does not take it ({reason})") from None
    ours = _open_ours(loaded)
    said = [
        _compare(ours, theirs, loaded, dtype, tolerance, library)
        for dtype, tolerance in (
            (torch.float32, FP32_TOLERANCE),
            (torch.float64, FP64_TOLERANCE),
        )
        if target != "onnx" or dtype == torch.float32  # the graph computes in no other
    ]
    return f"verified in {library}: {', '.join(said)}"


def _read_back(loaded: Loaded, destination: Path) -> str:
    again = load(
        destination,
        image_size=loaded.model.image_size,
        window_size=loaded.model.window_size if loaded.family == "swinv2" else None,
    )
    same = again.tensors.keys() == loaded.tensors.keys() and all(
        torch.equal(again.tensors[name], tensor) for name, tensor in loaded.tensors.items()
    )
    if not same:
        raise ModelError(f"{destination}: does not read back as it was written; do not use it")
    return "read back bit for bit"


@torch.no_grad()
def _compare(
    ours: nn.Module,
    theirs: Callable[[Tensor], Tensor],
    loaded: Loaded,
    dtype: torch.dtype,
    tolerance: float,
    library: str,
) -> str:
    generator = torch.Generator().manual_seed(0)
    side = loaded.model.image_size
    images = torch.randn(_IMAGES, 3, side, side, generator=generator, dtype=torch.float64)
    expected, got = ours.to(dtype)(images.to(dtype)), theirs(images.to(dtype))
    if got.shape != expected.shape:
        raise ModelError(
            f"{library}: expected logits {tuple(expected.shape)}, got {tuple(got.shape)}"
        )
    difference = float((got - expected).abs().max())
    largest = max(float(expected.abs().max()), 1.0)
    name = str(dtype).removeprefix("torch.")
    if not difference <= tolerance * largest:
        raise ModelError(
            f"{library}: computes other logits in {name}: they differ by {difference:.1e}, "
            f"expected at most {tolerance * largest:.1e}; do not use the result"
        )
    return f"{name} logits differ by {difference:.1e} (at most {tolerance * largest:.1e})"


def _open_ours(loaded: Loaded) -> nn.Module:
    network = build(loaded.model)
    network.load_state_dict(loaded.tensors)
    return network.eval()


def _open_huggingface(_loaded: Loaded, destination: Path) -> Callable[[Tensor], Tensor]:
    from transformers import AutoModelForImageClassification  # type: ignore[import-not-found]

    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        network: Any = AutoModelForImageClassification.from_pretrained(
            destination, dtype=torch.float32, local_files_only=True
        )
    finally:
        logger.removeHandler(handler)
    if said:
        raise ValueError(f"it warns: {said[0]}")
    return lambda images: network.eval().to(images.dtype)(pixel_values=images).logits


def _open_timm(_loaded: Loaded, destination: Path) -> Callable[[Tensor], Tensor]:
    import timm  # type: ignore[import-not-found]

    network = timm.create_model(f"local-dir:{destination}", pretrained=True).eval()
    return lambda images: network.to(images.dtype)(images)


def _open_graph(_loaded: Loaded, destination: Path) -> Callable[[Tensor], Tensor]:
    return open_onnx(destination)


def _open_torchvision(loaded: Loaded, destination: Path) -> Callable[[Tensor], Tensor]:
    from torchvision.models.swin_transformer import (  # type: ignore[import-not-found]
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlockV2,
    )

    from pretrain.convert.contents import read_contents

    shape = shape_of(loaded.model)
    second: dict[str, Any] = {}
    if loaded.family == "swinv2":
        second = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    network = SwinTransformer(
        patch_size=[shape.patch_size] * 2,
        embed_dim=shape.embed_dim,
        depths=list(shape.depths),
        num_heads=list(shape.heads),
        window_size=[shape.window_size] * 2,
        num_classes=shape.num_classes,
        **second,
    ).eval()
    network.load_state_dict(read_contents(destination).objects)
    return lambda images: network.to(images.dtype)(images)
