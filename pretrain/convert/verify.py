"""Whether a result computes in its own library what the source does here."""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.convert.graph import open_onnx
from pretrain.convert.names import is_derived
from pretrain.convert.read import Loaded, load
from pretrain.convert.targets import Target
from pretrain.errors import ModelError
from pretrain.models.build import build
from pretrain.models.swin import Swin
from pretrain.models.variants import shape_of, stage_maps

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
_STRIDE = 32
"""Image pixels for a token of the last stage's map."""


class _Theirs(NamedTuple):
    """What a library computes.

    Attributes:
        compute: float images [B, 3, H, W] to ``what``.
        what: "logits" [B, Y], or "features" [B, C]: the last map's mean after the last norm.
        side: of the images to compare on, pixels.
    """

    compute: Callable[[Tensor], Tensor]
    what: str
    side: int


def verify(loaded: Loaded, destination: Path, target: Target) -> str:
    """Compare what the same images give, here and in the library that the layout is for.

    That is their logits; without a head, and in mmdetection's backbones, the mean of the last map.

    Args:
        loaded: what was converted.
        destination: the result.
        target: its layout.

    Returns:
        One sentence: the differences and where they were measured, or why nothing was.

    Raises:
        ModelError: the library does not take the result, or computes something else with it.
    """
    library = _LIBRARIES.get(target)
    if target == "mmdetection" and loaded.family == "swinv2":
        library = "mmpretrain"
    if library is None:
        return _read_back(loaded, destination)
    if importlib.util.find_spec(library) is None:
        read_back = "" if target == "onnx" else f"; {_read_back(loaded, destination)}"
        return f"not verified: {library} is not installed here{read_back}"
    openers = {
        "timm": _open_timm,
        "huggingface": _open_huggingface,
        "mmdetection": _open_mmdetection,
        "onnx": _open_graph,
    }
    opener = openers.get(target, _open_torchvision)
    try:
        theirs = opener(loaded, destination)
    except (ImportError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        return f"not verified: {library} cannot be imported here ({reason})"
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{destination}: {library} does not take it ({reason})") from None
    ours = _open_ours(loaded, theirs.what)
    said = [
        _compare(ours, theirs, dtype, tolerance, library)
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
    ours: nn.Module, theirs: _Theirs, dtype: torch.dtype, tolerance: float, library: str
) -> str:
    generator = torch.Generator().manual_seed(0)
    side, what = theirs.side, theirs.what
    images = torch.randn(_IMAGES, 3, side, side, generator=generator, dtype=torch.float64)
    expected, got = ours.to(dtype)(images.to(dtype)), theirs.compute(images.to(dtype))
    if got.shape != expected.shape:
        raise ModelError(
            f"{library}: expected {what} {tuple(expected.shape)}, got {tuple(got.shape)}"
        )
    difference = float((got - expected).abs().max())
    largest = max(float(expected.abs().max()), 1.0)
    name = str(dtype).removeprefix("torch.")
    if not difference <= tolerance * largest:
        raise ModelError(
            f"{library}: computes other {what} in {name}: they differ by {difference:.1e}, "
            f"expected at most {tolerance * largest:.1e}; do not use the result"
        )
    return f"{name} {what} differ by {difference:.1e} (at most {tolerance * largest:.1e})"


class _Pooled(nn.Module):
    """A network without its head."""

    def __init__(self, network: Swin) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, C]: the last map's mean after the last norm."""
        last = self.network.forward_features(images)[-1].permute(0, 2, 3, 1)
        return self.network.norm(last).mean(dim=(1, 2))


def _open_ours(loaded: Loaded, what: str) -> nn.Module:
    network = build(loaded.model)
    network.load_state_dict(loaded.tensors, strict=loaded.has_head)
    if what == "logits":
        return network.eval()
    return _Pooled(network).eval()


def _open_huggingface(loaded: Loaded, destination: Path) -> _Theirs:
    from transformers import (  # type: ignore[import-not-found]
        AutoModel,
        AutoModelForImageClassification,
    )

    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        kind = AutoModelForImageClassification if loaded.has_head else AutoModel
        network: Any = kind.from_pretrained(destination, dtype=torch.float32, local_files_only=True)
    finally:
        logger.removeHandler(handler)
    if said:
        raise ValueError(f"it warns: {said[0]}")
    answer, what = ("logits",) * 2 if loaded.has_head else ("pooler_output", "features")
    return _Theirs(
        lambda images: getattr(network.eval().to(images.dtype)(pixel_values=images), answer),
        what,
        loaded.model.image_size,
    )


def _open_timm(loaded: Loaded, destination: Path) -> _Theirs:
    import timm  # type: ignore[import-not-found]

    network = timm.create_model(f"local-dir:{destination}", pretrained=True).eval()
    what = "logits" if loaded.has_head else "features"
    return _Theirs(lambda images: network.to(images.dtype)(images), what, loaded.model.image_size)


def _open_graph(loaded: Loaded, destination: Path) -> _Theirs:
    return _Theirs(open_onnx(destination), "logits", loaded.model.image_size)


def _open_mmdetection(loaded: Loaded, destination: Path) -> _Theirs:
    """The backbone of mmdetection, whose V2 is mmpretrain's."""
    from pretrain.convert.contents import read_contents

    shape = shape_of(loaded.model)
    architecture = {"embed_dims": shape.embed_dim, "depths": shape.depths, "num_heads": shape.heads}
    if loaded.family == "swinv2":
        from mmpretrain.models.backbones import (  # type: ignore[import-not-found]
            SwinTransformerV2,
        )

        network = SwinTransformerV2(
            arch={**architecture, "extra_norm_every_n_blocks": shape.extra_norm_every},
            img_size=shape.image_size,
            window_size=[stage.window for stage in stage_maps(shape)],
            pretrained_window_sizes=list(shape.pretrained_window_sizes),
        )
        side = shape.image_size
    else:
        from mmdet.models.backbones.swin import (  # type: ignore[import-not-found]
            SwinTransformer,
        )

        network = SwinTransformer(
            **architecture, window_size=shape.window_size, out_indices=(len(shape.depths) - 1,)
        )
        # It shifts windows on maps of a single one too, which no classifier does.
        side = 2 * _STRIDE * shape.window_size
    contents = read_contents(destination).objects
    prefix = "backbone."
    backbone = {
        name.removeprefix(prefix): tensor
        for name, tensor in contents.get("state_dict", contents).items()
        if name.startswith(prefix)
    }
    # mmpretrain leaves out what follows from the shape, and misses it then.
    missing, unknown = network.load_state_dict(backbone, strict=False)
    differing = [*unknown, *(name for name in missing if not is_derived(name))]
    if differing:
        raise ValueError(f"names differ: {', '.join(differing[:6])}")
    network.eval()
    return _Theirs(
        lambda images: network.to(images.dtype)(images)[0].mean(dim=(2, 3)), "features", side
    )


def _open_torchvision(loaded: Loaded, destination: Path) -> _Theirs:
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
    return _Theirs(
        lambda images: network.to(images.dtype)(images), "logits", loaded.model.image_size
    )
