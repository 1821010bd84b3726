"""Make a model from its config, initialised as the recipe."""

from collections.abc import Sequence

from torch import nn

from pretrain.config.schema import ModelConfig
from pretrain.models.mixers import Attention, SpatialMlp, WindowAttention
from pretrain.models.swin import Block, Swin
from pretrain.models.variants import STAGES, shape_of

INIT_STD = 0.02
"""Deviation of the truncated normal (official implementation)."""


def build(model: ModelConfig, activation_checkpointing: Sequence[str] = ("none",) * STAGES) -> Swin:
    """Make the model on the CPU in float32; its weights follow from torch's current seed.

    Args:
        model: the config's section.
        activation_checkpointing: per stage what is computed again, see `Swin`.

    Raises:
        ConfigError: as `shape_of`.
    """
    swin = Swin(shape_of(model), activation_checkpointing)
    swin.apply(initialize)
    return swin


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Let torch compile each block of a model in place, at its first pass.

    Blocks, because their shapes repeat: one graph per kind of block, however deep the model.

    Args:
        model: anything that has `Block`s inside; its state-dict names stay.
        backend: torch's name; others than the default are for tests.
    """
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(backend=backend)


def use_kernels(model: nn.Module, *, attention: bool, layer_norm: bool) -> None:
    """Let a model's blocks compute by the kernels of `pretrain.kernels`, or by plain torch again.

    The same function to rounding, the same names; before the blocks are compiled.

    Args:
        model: anything that has `Block`s inside.
        attention: window attention on the maps themselves (V1 and V2).
        layer_norm: each block's norms together with the residual sums.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused = attention
        elif isinstance(module, Block):
            module.fused_norms = layer_norm


def initialize(module: nn.Module) -> None:
    """Initialise one module's own parameters as the recipe: norms and convolutions as torch does.

    The normal is truncated at ±2, not at two deviations, as published: here it cuts off nothing.
    V2's blocks start as the identity, by the weights of their norms (official implementation).
    """
    if isinstance(module, nn.Linear | SpatialMlp):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=INIT_STD)
    elif isinstance(module, Block) and module.post_norm:
        nn.init.zeros_(module.norm1.weight)
        nn.init.zeros_(module.norm2.weight)
