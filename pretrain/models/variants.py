"""Shapes of the published Swin models, and what they cost, without torch.

Letters: C channels, L tokens of a map, M window side, K = M·M, A heads, Y classes.
Source: Swin Transformer (arXiv 2103.14030), section 3 and its table 7.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pretrain.config.schema import ModelConfig
from pretrain.errors import ConfigError

STAGES = 4
IMAGE_CHANNELS = 3
PATCH_SIZE = 4
MLP_RATIO = 4
COMPUTE_BYTES = {"bf16": 2, "fp32": 4}
"""Bytes of a scalar inside a block, per precision."""


class Variant(NamedTuple):
    """A row of the paper's table: first-stage channels, blocks and heads of each stage."""

    embed_dim: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]


VARIANTS = {
    "swin_t": Variant(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_s": Variant(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_b": Variant(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_l": Variant(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


@dataclass(frozen=True)
class Shape:
    """Everything that fixes a Swin's parameters and their use.

    Attributes:
        embed_dim: channels of the first stage; each later stage has twice as many.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        image_size: side of the square image the windows are laid out for, pixels.
        window_size: side of an attention window, tokens.
        num_classes: outputs of the head.
        drop_path: stochastic depth of the last block, a fraction; earlier blocks rise to it from 0.
        patch_size: side of a patch, pixels.
        mlp_ratio: hidden channels of a block's network, over its channels.
    """

    embed_dim: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    image_size: int
    window_size: int
    num_classes: int
    drop_path: float = 0.0
    patch_size: int = PATCH_SIZE
    mlp_ratio: int = MLP_RATIO

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of each stage."""
        first = self.embed_dim
        return (first, 2 * first, 4 * first, 8 * first)


class StageMap(NamedTuple):
    """A stage's square map: its side, its windows' side and their shift, in tokens."""

    side: int
    window: int
    shift: int


def shape_of(model: ModelConfig) -> Shape:
    """The variant's row, with the fields that the config overrides.

    Raises:
        ConfigError: some stage's heads do not divide its channels.
    """
    variant = VARIANTS[model.variant]
    shape = Shape(
        embed_dim=model.embed_dim or variant.embed_dim,
        depths=model.depths or variant.depths,
        heads=model.heads or variant.heads,
        image_size=model.image_size,
        window_size=model.window_size,
        num_classes=model.num_classes,
        drop_path=model.drop_path,
    )
    for stage, (channels, heads) in enumerate(zip(shape.channels, shape.heads, strict=True)):
        if channels % heads:
            raise ConfigError(
                f"model.heads[{stage}]: got {heads}, expected a divisor of the stage's {channels} "
                f"channels (embed_dim {shape.embed_dim} x {2**stage})"
            )
    return shape


def fit_window(height: int, width: int, window_size: int) -> tuple[int, int]:
    """Window side and shift on a map of ``height`` x ``width`` tokens.

    A map no larger than the window becomes the window and is not shifted (official
    implementation; the paper's maps at 224 meet it in the last stage).

    Example:
        >>> fit_window(14, 14, 7), fit_window(7, 7, 7), fit_window(4, 9, 7)
        ((7, 3), (7, 0), (4, 0))
    """
    if min(height, width) <= window_size:
        return min(height, width), 0
    return window_size, window_size // 2


def stage_maps(shape: Shape) -> list[StageMap]:
    """The map, window and shift of each stage at the shape's own image size."""
    maps = []
    side = -(-shape.image_size // shape.patch_size)
    for _ in range(STAGES):
        maps.append(StageMap(side, *fit_window(side, side, shape.window_size)))
        side = -(-side // 2)
    return maps


def check_image_size(shape: Shape) -> None:
    """Refuse an image size whose maps the windows do not tile: it would train on padding.

    Raises:
        ConfigError: the image is no multiple of the last stage's stride, or some stage's map is
            larger than the window and no multiple of it. Names the nearest sizes that fit.
    """
    stride = shape.patch_size * 2 ** (STAGES - 1)
    if _is_tiled(shape.image_size // stride, shape.window_size) and shape.image_size % stride == 0:
        return
    valid = [
        stride * side
        for side in range(1, shape.image_size // stride + STAGES * shape.window_size * 2)
        if _is_tiled(side, shape.window_size)
    ]
    below = [size for size in valid if size < shape.image_size][-1:]
    above = [size for size in valid if size > shape.image_size][:1]
    nearest = " or ".join(str(size) for size in below + above)
    maps = ", ".join(str(stage.side) for stage in stage_maps(shape))
    raise ConfigError(
        f"model.image_size: got {shape.image_size}, whose maps of {maps} tokens are not tiled by "
        f"windows of {shape.window_size}; expected a multiple of {stride} whose maps are each no "
        f"larger than the window or a multiple of it: {nearest}"
    )


def _is_tiled(last_side: int, window_size: int) -> bool:
    """Whether windows tile every stage's map, given the last stage's (at least 1)."""
    sides = [last_side * 2**power for power in range(STAGES)]
    return last_side > 0 and all(s <= window_size or s % window_size == 0 for s in sides)


def count_parameters(shape: Shape) -> int:
    """Trainable scalars of the whole model, head included."""
    patch_embed = IMAGE_CHANNELS * shape.patch_size**2 * shape.embed_dim + 3 * shape.embed_dim
    total = patch_embed
    for stage, (channels, stage_map) in enumerate(
        zip(shape.channels, stage_maps(shape), strict=True)
    ):
        bias_table = (2 * stage_map.window - 1) ** 2 * shape.heads[stage]
        attention = 4 * channels**2 + 4 * channels + bias_table
        hidden = shape.mlp_ratio * channels
        mlp = 2 * channels * hidden + hidden + channels
        norms = 4 * channels
        total += shape.depths[stage] * (attention + mlp + norms)
        if stage < STAGES - 1:
            total += 2 * 4 * channels + 4 * channels * 2 * channels
    last = shape.channels[-1]
    return total + 2 * last + last * shape.num_classes + shape.num_classes


def count_forward_macs(shape: Shape) -> int:
    """Multiply-adds of one image's forward pass: the matrix products, as published "FLOPs" are.

    A training step costs about three times as many (forward, and twice that backward).
    """
    first_tokens = stage_maps(shape)[0].side ** 2
    total = first_tokens * IMAGE_CHANNELS * shape.patch_size**2 * shape.embed_dim
    for stage, (channels, stage_map) in enumerate(
        zip(shape.channels, stage_maps(shape), strict=True)
    ):
        tokens = stage_map.side**2
        padded = _padded_tokens(stage_map)
        projections = padded * 4 * channels**2
        attention = 2 * padded * stage_map.window**2 * channels
        mlp = tokens * 2 * shape.mlp_ratio * channels**2
        total += shape.depths[stage] * (projections + attention + mlp)
        if stage < STAGES - 1:
            merged = (-(-stage_map.side // 2)) ** 2
            total += merged * 4 * channels * 2 * channels
    return total + shape.channels[-1] * shape.num_classes


def _padded_tokens(stage_map: StageMap) -> int:
    """Tokens of a map after padding to whole windows."""
    return (stage_map.side + -stage_map.side % stage_map.window) ** 2


def activation_bytes_per_image(
    shape: Shape,
    precision: Literal["bf16", "fp32"],
    activation_checkpointing: Sequence[str] = ("none",) * STAGES,
) -> int:
    """Estimate of the bytes that one image's forward pass keeps for its backward pass.

    Counts what torch saves with its memory-efficient attention kernel, and once the largest block
    that is recomputed, since it is alive during the backward pass. Weights, their low-precision
    copies and the loss are not counted.

    Args:
        shape: the model.
        precision: bf16 is autocast, where the residual stream stays fp32.
        activation_checkpointing: per stage "none" or "full" (recompute each block).
    """
    compute = COMPUTE_BYTES[precision]
    maps = stage_maps(shape)
    total = IMAGE_CHANNELS * shape.image_size**2 * compute  # images, for the patch projection
    total += (maps[0].side ** 2 * shape.channels[0] + maps[-1].side ** 2 * shape.channels[-1]) * 4
    largest_recomputed = 0
    for stage, (channels, stage_map) in enumerate(zip(shape.channels, maps, strict=True)):
        blocks = [
            _block_bytes(shape, stage, compute, bool(j % 2)) for j in range(shape.depths[stage])
        ]
        if activation_checkpointing[stage] == "full":
            total += len(blocks) * stage_map.side**2 * channels * 4
            largest_recomputed = max(largest_recomputed, *blocks)
        else:
            total += sum(blocks)
        if stage < STAGES - 1:
            total += maps[stage + 1].side ** 2 * 4 * channels * (4 + compute)
    return total + largest_recomputed


def _block_bytes(shape: Shape, stage: int, compute: int, odd: bool) -> int:
    """What a block saves: the inputs of its norms in fp32, of its products in ``compute`` bytes."""
    stage_map, channels = stage_maps(shape)[stage], shape.channels[stage]
    tokens, padded = stage_map.side**2, _padded_tokens(stage_map)
    # Input of qkv; q, k, v; output, which shifted windows copy before its projection.
    copies = 6 if odd and stage_map.shift else 5
    attention = padded * (copies * channels * compute + 4 * shape.heads[stage])
    mlp = tokens * channels * compute * (1 + 2 * shape.mlp_ratio)
    return 2 * tokens * channels * 4 + attention + mlp
