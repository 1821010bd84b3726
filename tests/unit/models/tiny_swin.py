"""Configs of published models, and a Swin small enough for every test, no part of it idle."""

from typing import Any

import torch

from pretrain.config.schema import ModelConfig
from pretrain.models.swin import Swin
from pretrain.models.variants import NO_WINDOWS, Family, PerStage, Shape

FAMILIES = ("v1", "v2", "mlp")


def config(
    variant: Any = "swin_t",
    image_size: int = 224,
    window_size: int = 7,
    num_classes: int = 1000,
    **overrides: Any,
) -> ModelConfig:
    """A published model, Swin-T at 224 unless told otherwise."""
    return ModelConfig(
        variant=variant,
        image_size=image_size,
        window_size=window_size,
        num_classes=num_classes,
        **overrides,
    )


def tiny_shape(
    image_size: int = 64,
    window_size: int = 4,
    num_classes: int = 5,
    drop_path: float = 0.0,
    family: Family = "v1",
    pretrained_window_sizes: PerStage = NO_WINDOWS,
) -> Shape:
    return Shape(
        embed_dim=12,
        depths=(2, 2, 2, 2),
        heads=(1, 2, 3, 6),
        image_size=image_size,
        window_size=window_size,
        num_classes=num_classes,
        drop_path=drop_path,
        family=family,
        pretrained_window_sizes=pretrained_window_sizes,
    )


def randomized(model: Swin, seed: int = 0) -> Swin:
    """Draw every parameter, so that biases, norms and position biases all matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            scale = 0.5 if name.endswith("table") else 1 / max(parameter[0].numel(), 4) ** 0.5
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            if name.endswith("logit_scale"):
                scale, offset = 1.5, 3.5  # some heads above the clamp, which is at 4.6
            parameter.copy_(drawn * scale + offset)
    return model
