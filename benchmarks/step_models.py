"""Other libraries' Swin, of the same shape as ours, for `benchmarks/step.py`."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.variants import IMAGE_CHANNELS, Shape

TIMM_NAMES = {96: {6: "tiny", 18: "small"}, 128: {18: "base"}, 192: {18: "large"}}
"""By the channels of the first stage, then by the blocks of the third."""


class NotMeasurableError(Exception):
    """A library cannot take part; says why in few words."""


def import_library(name: str) -> Any:
    """Import what may not be here.

    Raises:
        NotMeasurableError: it is not installed, or it does not import.
    """
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise NotMeasurableError("not installed")
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise NotMeasurableError(f"installed, but its import fails: {reason}") from error


def timm_network(shape: Shape, recompute: str, *, fused_attention: bool = False) -> nn.Module:
    """Return timm's; its fused attention is off unless asked for, as timm has it for Swin.

    Raises:
        NotMeasurableError: timm cannot be imported, or does not compute such a part again.
    """
    timm = import_library("timm")
    layers = import_library("timm.layers")
    if recompute not in ("none", "full"):
        raise NotMeasurableError("checkpoints whole blocks only")
    layers.set_fused_attn(fused_attention, experimental=fused_attention)
    size = TIMM_NAMES.get(shape.embed_dim, {}).get(shape.depths[2], "tiny")
    network = timm.create_model(
        f"swin_{size}_patch4_window7_224",
        img_size=shape.image_size,
        window_size=shape.window_size,
        embed_dim=shape.embed_dim,
        depths=shape.depths,
        num_heads=shape.heads,
        num_classes=shape.num_classes,
        drop_path_rate=shape.drop_path,
    )
    network.set_grad_checkpointing(recompute == "full")
    return network


def torchvision_network(shape: Shape, recompute: str) -> nn.Module:
    """Return torchvision's, which has no Swin-L of its own: its class with those numbers.

    Raises:
        NotMeasurableError: torchvision cannot be imported, or activation checkpointing is asked of
            it.
    """
    swin = import_library("torchvision.models.swin_transformer")
    if recompute != "none":
        raise NotMeasurableError("has no activation checkpointing")
    return swin.SwinTransformer(
        patch_size=[shape.patch_size] * 2,
        embed_dim=shape.embed_dim,
        depths=list(shape.depths),
        num_heads=list(shape.heads),
        window_size=[shape.window_size] * 2,
        stochastic_depth_prob=shape.drop_path,
        num_classes=shape.num_classes,
    )


class _Logits(nn.Module):
    """A network of transformers' as a function to logits."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).logits


def transformers_network(shape: Shape, recompute: str) -> nn.Module:
    """Return transformers', with torch's fused attention.

    Raises:
        NotMeasurableError: transformers cannot be imported, or does not compute such a part again.
    """
    transformers = import_library("transformers")
    if recompute not in ("none", "full"):
        raise NotMeasurableError("checkpoints whole blocks only")
    network = transformers.SwinForImageClassification(
        transformers.SwinConfig(
            image_size=shape.image_size,
            embed_dim=shape.embed_dim,
            depths=shape.depths,
            num_heads=shape.heads,
            window_size=shape.window_size,
            num_labels=shape.num_classes,
            drop_path_rate=shape.drop_path,
            attn_implementation="sdpa",
        )
    )
    if recompute == "full":
        network.gradient_checkpointing_enable()
    return _Logits(network)


NETWORKS: dict[str, Callable[[Shape, str], nn.Module]] = {
    "timm": timm_network,
    "timm_fused": lambda shape, recompute: timm_network(shape, recompute, fused_attention=True),
    "torchvision": torchvision_network,
    "transformers": transformers_network,
}


@torch.no_grad()
def count_macs(network: nn.Module, image_size: int) -> int:
    """Multiply-adds of one image's forward pass, the products alone, as torch counts them.

    Args:
        network: on the CPU; left in training mode.
        image_size: side of the image, pixels.
    """
    counter = FlopCounterMode(display=False)
    image = torch.zeros(1, IMAGE_CHANNELS, image_size, image_size)
    # The plain attention: the counter does not know every fused kernel.
    with counter, sdpa_kernel(SDPBackend.MATH):
        network.eval()(image)
    network.train()
    return counter.get_total_flops() // 2
