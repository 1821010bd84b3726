"""Shapes of the published Swin models, without torch.

Sources: Swin Transformer (arXiv 2103.14030), section 3 and its table 7; Swin Transformer V2 (arXiv
2111.09883), section 3.5; Swin-MLP, official repository.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from pretrain.config.masking import MaskingConfig
from pretrain.config.schema import ModelConfig
from pretrain.errors import ConfigError

STAGES = 4
IMAGE_CHANNELS = 3
PATCH_SIZE = 4
MLP_RATIO = 4
BIAS_NETWORK_CHANNELS = 512
"""Hidden channels of V2's continuous position bias network (official implementation)."""

Family = Literal["v1", "v2", "mlp"]
PerStage = tuple[int, int, int, int]
NO_WINDOWS: PerStage = (0, 0, 0, 0)


class Variant(NamedTuple):
    """A row of the papers' tables.

    Attributes:
        family: which network: what mixes the tokens of a window, and where the norms are.
        embed_dim: channels of the first stage.
        depths: blocks of each stage.
        heads: heads of each stage.
        extra_norm_every: blocks of a stage between norms of the residual stream; 0 for none.
    """

    family: Family
    embed_dim: int
    depths: PerStage
    heads: PerStage
    extra_norm_every: int = 0


VARIANTS = {
    "swin_t": Variant("v1", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_s": Variant("v1", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_b": Variant("v1", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_l": Variant("v1", 192, (2, 2, 18, 2), (6, 12, 24, 48)),
    "swinv2_t": Variant("v2", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swinv2_s": Variant("v2", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swinv2_b": Variant("v2", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swinv2_l": Variant("v2", 192, (2, 2, 18, 2), (6, 12, 24, 48)),
    # The paper gives no heads of these two; 32 channels each in the Giant, as in all the others.
    "swinv2_h": Variant("v2", 352, (2, 2, 18, 2), (8, 16, 32, 64), extra_norm_every=6),
    "swinv2_g": Variant("v2", 512, (2, 2, 42, 4), (16, 32, 64, 128), extra_norm_every=6),
    # C6, C12, C24: channels of a head.
    "swin_mlp_t_c6": Variant("mlp", 96, (2, 2, 6, 2), (16, 32, 64, 128)),
    "swin_mlp_t_c12": Variant("mlp", 96, (2, 2, 6, 2), (8, 16, 32, 64)),
    "swin_mlp_t_c24": Variant("mlp", 96, (2, 2, 6, 2), (4, 8, 16, 32)),
    "swin_mlp_b": Variant("mlp", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
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
        num_classes: outputs of the head; 0 where there is none.
        drop_path: stochastic depth of the last block, a fraction; earlier blocks rise to it from 0.
        patch_size: side of a patch, pixels.
        mlp_ratio: hidden channels of a block's network, over its channels.
        family: see `Variant`.
        pretrained_window_sizes: V2: window side of each stage that the position bias was trained
            with, tokens; 0 where it is this model's own.
        extra_norm_every: see `Variant`.
        masked: with a token for what is hidden and a decoder of pixels, see `MaskedSwin`.
    """

    embed_dim: int
    depths: PerStage
    heads: PerStage
    image_size: int
    window_size: int
    num_classes: int
    drop_path: float = 0.0
    patch_size: int = PATCH_SIZE
    mlp_ratio: int = MLP_RATIO
    family: Family = "v1"
    pretrained_window_sizes: PerStage = NO_WINDOWS
    extra_norm_every: int = 0
    masked: bool = False

    @property
    def channels(self) -> PerStage:
        """Channels of each stage."""
        first = self.embed_dim
        return (first, 2 * first, 4 * first, 8 * first)

    @property
    def stride(self) -> int:
        """Side of the square of pixels that a token of the last stage stands for."""
        return self.patch_size * 2 ** (STAGES - 1)


class StageMap(NamedTuple):
    """A stage's square map: its side, its windows' side and their shift, in tokens."""

    side: int
    window: int
    shift: int


def shape_of(model: ModelConfig) -> Shape:
    """The variant's row, with the fields that the config overrides.

    Raises:
        ConfigError: some stage's heads do not divide its channels, or windows of an earlier
            training are given to a network whose position bias does not depend on them.
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
        family=variant.family,
        pretrained_window_sizes=model.pretrained_window_sizes,
        extra_norm_every=variant.extra_norm_every,
    )
    if shape.family != "v2" and shape.pretrained_window_sizes != NO_WINDOWS:
        raise ConfigError(
            f"model.pretrained_window_sizes: got {list(shape.pretrained_window_sizes)} for "
            f"{model.variant}; only swinv2_* variants have them; leave the field out"
        )
    for stage, (channels, heads) in enumerate(zip(shape.channels, shape.heads, strict=True)):
        if channels % heads:
            raise ConfigError(
                f"model.heads[{stage}]: got {heads}, expected a divisor of the stage's {channels} "
                f"channels (embed_dim {shape.embed_dim} x {2**stage})"
            )
    return shape


def masked_shape(shape: Shape) -> Shape:
    """The same network for masked-image pre-training: a decoder of pixels in place of the head."""
    return replace(shape, num_classes=0, masked=True)


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


def trained_windows(shape: Shape) -> PerStage:
    """V2: the window side, in tokens, that each stage's position bias takes its unit from."""
    maps, earlier = stage_maps(shape), shape.pretrained_window_sizes
    first, second, third, fourth = (
        known or stage_map.window for known, stage_map in zip(earlier, maps, strict=True)
    )
    return first, second, third, fourth


def layer_depth(name: str, shape: Shape) -> int:
    """Depth of a parameter for layer-wise decay of the learning rate (arXiv 2111.09886's code).

    Returns:
        0 for the patch embedding, then 1 for the first block and one more for each block after it;
        a patch merging has the depth of the block before it; the final norm and the head come last.

    Example:
        >>> shape = Shape(96, (2, 2, 6, 2), (3, 6, 12, 24), 224, 7, 1000)
        >>> layer_depth("layers.1.blocks.0.norm1.weight", shape), layer_depth("head.bias", shape)
        (3, 13)
    """
    part, *rest = name.split(".")
    if part == "patch_embed":
        return 0
    if part != "layers":
        return sum(shape.depths) + 1
    stage = int(rest[0])
    if rest[1] == "blocks":
        return sum(shape.depths[:stage]) + int(rest[2]) + 1
    return sum(shape.depths[: stage + 1])


def parameter_stage(name: str) -> int | None:
    """Return the stage that a parameter of a Swin counts to, 0 to 3; None for the head's.

    The patch embedding counts to the first, the final norm to the last, what merges patches to the
    stage whose maps it takes. The head belongs to a task, not to the network.

    Example:
        >>> parameter_stage("layers.1.blocks.0.norm1.weight"), parameter_stage("norm.bias")
        (1, 3)
        >>> parameter_stage("head.weight")
    """
    part, *rest = name.split(".")
    if part == "layers":
        return int(rest[0])
    return {"patch_embed": 0, "norm": STAGES - 1}.get(part)


def check_image_size(shape: Shape) -> None:
    """Refuse an image size whose maps the windows do not tile: it would train on padding.

    Raises:
        ConfigError: the image is no multiple of the last stage's stride, or some stage's map is
            larger than the window and no multiple of it. Names the nearest sizes that fit.
    """
    stride = shape.stride
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


def check_masking(shape: Shape, masking: MaskingConfig) -> None:
    """Refuse squares that do not tile the image or cut through patches, or hide all of it.

    Raises:
        ConfigError: naming the sizes that fit.
    """
    size, patch_size = masking.patch_size, shape.patch_size
    if size % patch_size or shape.image_size % size:
        fitting = [
            str(side)
            for side in range(patch_size, shape.image_size, patch_size)
            if shape.image_size % side == 0
        ]
        raise ConfigError(
            f"masking.patch_size: got {size}, expected a multiple of the network's patches of "
            f"{patch_size} pixels that divides model.image_size {shape.image_size}: "
            f"{', '.join(fitting)}"
        )
    squares = masking.squares_per_side(shape.image_size) ** 2
    if masking.hidden_squares(shape.image_size) == squares:
        raise ConfigError(
            f"masking.ratio: {masking.ratio:g} of {squares} squares of {size} pixels hides all of "
            "them; give a lower masking.ratio or a smaller masking.patch_size"
        )


def _is_tiled(last_side: int, window_size: int) -> bool:
    """Whether windows tile every stage's map, given the last stage's (at least 1)."""
    sides = [last_side * 2**power for power in range(STAGES)]
    return last_side > 0 and all(s <= window_size or s % window_size == 0 for s in sides)
