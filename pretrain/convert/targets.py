"""The layouts that weights are written in, and which networks each has a place for. No torch."""

from pathlib import Path
from typing import get_args

from pretrain.config.schema import ModelConfig, Target
from pretrain.errors import ModelError
from pretrain.models.variants import shape_of, stage_maps

EVERY: tuple[Target, ...] = get_args(Target)
"""What can be written."""
TARGETS: tuple[Target, ...] = tuple(target for target in EVERY if target != "onnx")
"""The layouts, all of which can be read again; ``safetensors`` is our own export."""
DIRECTORIES = ("timm", "huggingface", "safetensors")
"""Those that are a directory; the others are a file, ``.pth`` or ``.safetensors``."""
_ONE_WINDOW = ("huggingface", "torchvision", "mmdetection")
"""Those whose networks have a single window size for the tables of all stages."""
_ONE_WINDOW_OF_V1 = ("huggingface", "mmdetection")
"""Those of them whose V2 has no such tables, and takes each stage's own window."""


def check_target(model: ModelConfig, target: Target) -> None:
    """Refuse a layout whose networks cannot be this one.

    Raises:
        ModelError: with the layouts that can.
    """
    shape = shape_of(model)
    windows = {stage.window for stage in stage_maps(shape)}
    if target == "torchvision" and any(shape.pretrained_window_sizes):
        raise ModelError("torchvision: has no windows of an earlier training; write timm")
    if target in _ONE_WINDOW_OF_V1 and shape.family == "v2":
        return
    if target in _ONE_WINDOW and len(windows) > 1:
        raise ModelError(
            f"{target}: has one window size for all stages, this model's are "
            f"{', '.join(str(window) for window in sorted(windows))} tokens at "
            f"{model.image_size} pixels; write official or timm"
        )


def path_in(directory: Path, target: Target) -> Path:
    """Where weights of a layout go in a directory that holds several."""
    if target in DIRECTORIES:
        return directory / target
    return directory / f"{target}{'.onnx' if target == 'onnx' else '.pth'}"
