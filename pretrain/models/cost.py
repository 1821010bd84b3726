"""What a model costs, from its shape, without torch: parameters, multiply-adds, activations.

Letters: C channels, M window side, K = M·M tokens of a window, A heads, Y classes.
"""

from collections.abc import Sequence
from typing import Literal

from pretrain.models.variants import (
    BIAS_NETWORK_CHANNELS,
    IMAGE_CHANNELS,
    STAGES,
    Shape,
    StageMap,
    stage_maps,
)

COMPUTE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of a scalar inside a block, per precision."""
_FP32_BYTES = 4


def count_parameters(shape: Shape) -> int:
    """Trainable scalars of the whole model, head included, or decoder and mask token."""
    first, last = shape.channels[0], shape.channels[-1]
    total = IMAGE_CHANNELS * shape.patch_size**2 * first + 3 * first
    for stage, (channels, stage_map) in enumerate(
        zip(shape.channels, stage_maps(shape), strict=True)
    ):
        hidden = shape.mlp_ratio * channels
        mlp = 2 * channels * hidden + hidden + channels
        mixer = _mixer_parameters(shape, channels, shape.heads[stage], stage_map.window)
        total += shape.depths[stage] * (mixer + mlp + 4 * channels)
        if shape.extra_norm_every:
            total += shape.depths[stage] // shape.extra_norm_every * 2 * channels
        if stage < STAGES - 1:
            norm = 2 * (2 if shape.family == "v2" else 4) * channels
            total += norm + 4 * channels * 2 * channels
    outputs = _outputs(shape)
    mask_token = first if shape.masked else 0
    return total + 2 * last + last * outputs + outputs + mask_token


def _outputs(shape: Shape) -> int:
    """Outputs of the last layer: for each image of the head, for each token of the decoder."""
    return IMAGE_CHANNELS * shape.stride**2 if shape.masked else shape.num_classes


def _mixer_parameters(shape: Shape, channels: int, heads: int, window: int) -> int:
    projections = 4 * channels**2
    match shape.family:
        case "v1":
            return projections + 4 * channels + (2 * window - 1) ** 2 * heads
        case "v2":
            bias_network = BIAS_NETWORK_CHANNELS * (3 + heads)
            return projections + 3 * channels + heads + bias_network
        case "mlp":
            return heads * window**2 * (window**2 + 1)


def count_forward_macs(shape: Shape) -> int:
    """Multiply-adds of one image's forward pass: the matrix products, as published "FLOPs" are.

    A training step costs about three times as many (forward, and twice that backward). V2's bias
    networks run once per batch, not per image, and are left out, as in the published figures.
    """
    total = stage_maps(shape)[0].side ** 2 * IMAGE_CHANNELS * shape.patch_size**2 * shape.embed_dim
    for stage, (channels, stage_map) in enumerate(
        zip(shape.channels, stage_maps(shape), strict=True)
    ):
        mlp = stage_map.side**2 * 2 * shape.mlp_ratio * channels**2
        total += shape.depths[stage] * mlp
        for block in range(shape.depths[stage]):
            padded, tokens = padded_tokens(shape, stage_map, block), stage_map.window**2
            if shape.family == "mlp":
                total += padded * tokens * channels
            else:
                total += padded * 4 * channels**2 + 2 * padded * tokens * channels
        if stage < STAGES - 1:
            merged = (-(-stage_map.side // 2)) ** 2
            total += merged * 4 * channels * 2 * channels
    decoded = stage_maps(shape)[-1].side ** 2 if shape.masked else 1
    return total + decoded * shape.channels[-1] * _outputs(shape)


def padded_tokens(shape: Shape, stage_map: StageMap, block: int) -> int:
    """Tokens of a map in a block's windows: Swin-MLP shifts its windows by padding in front."""
    side, window, shift = stage_map
    if shape.family == "mlp" and block % 2 and shift:
        side += window - shift
    return (side + -side % window) ** 2


def activation_bytes_per_image(
    shape: Shape,
    precision: Literal["bf16", "fp16", "fp32"],
    activation_checkpointing: Sequence[str] = ("none",) * STAGES,
) -> int:
    """Estimate of the bytes that one image's forward pass keeps for its backward pass.

    Counts what torch saves with its memory-efficient attention kernel, and once the largest part
    that is recomputed, since it is alive during the backward pass. Weights, their low-precision
    copies and the loss of a class are not counted; the loss of hidden pixels is.

    Args:
        shape: the model.
        precision: bf16 and fp16 are autocast, where the residual stream stays fp32.
        activation_checkpointing: per stage what is recomputed, as `Swin` takes it.
    """
    compute = COMPUTE_BYTES[precision]
    maps = stage_maps(shape)
    total = IMAGE_CHANNELS * shape.image_size**2 * compute  # images, for the patch projection
    total += (maps[0].side ** 2 * shape.channels[0] + maps[-1].side ** 2 * shape.channels[-1]) * 4
    if shape.masked:
        # The decoder's input, what its fp32 pixels differ by from the image, and what is hidden.
        total += maps[-1].side ** 2 * shape.channels[-1] * compute
        total += shape.image_size**2 * (IMAGE_CHANNELS * 4 + 1)
    largest_recomputed = 0
    for stage, (channels, stage_map) in enumerate(zip(shape.channels, maps, strict=True)):
        stream = stage_map.side**2 * channels * _FP32_BYTES
        for block in range(shape.depths[stage]):
            norms, mixing, mlp = _block_bytes(shape, stage, compute, block)
            match activation_checkpointing[stage]:
                case "none":
                    kept, again = norms + mixing + mlp, 0
                case "selective_attention":
                    kept, again = norms + mlp, mixing
                case "selective_mlp":
                    kept, again = norms + mixing, mlp
                case "full":
                    kept, again = stream, norms + mixing + mlp
                case _:  # full_offload: nothing stays but the input of the block at hand
                    kept, again = 0, stream + norms + mixing + mlp
            total += kept
            largest_recomputed = max(largest_recomputed, again)
        if stage < STAGES - 1:
            # The input of the norm in fp32 and of the reduction; V2's norm comes second.
            joined, normed = 4 * channels, (2 if shape.family == "v2" else 4) * channels
            total += maps[stage + 1].side ** 2 * (normed * 4 + joined * compute)
    return total + largest_recomputed


def offloaded_bytes_per_image(shape: Shape, activation_checkpointing: Sequence[str]) -> int:
    """Bytes that one image's forward pass keeps in the host's memory: the inputs of blocks, fp32.

    Args:
        shape: the model.
        activation_checkpointing: per stage what is recomputed, as `Swin` takes it.
    """
    return sum(
        depth * stage_map.side**2 * channels * _FP32_BYTES
        for depth, stage_map, channels, kind in zip(
            shape.depths,
            stage_maps(shape),
            shape.channels,
            activation_checkpointing,
            strict=True,
        )
        if kind == "full_offload"
    )


def _block_bytes(shape: Shape, stage: int, compute: int, block: int) -> tuple[int, int, int]:
    """What a block saves for its norms (inputs, fp32), its mixing and its MLP (``compute``)."""
    stage_map, channels = stage_maps(shape)[stage], shape.channels[stage]
    tokens, padded = stage_map.side**2, padded_tokens(shape, stage_map, block)
    shifted = bool(block % 2 and stage_map.shift)
    match shape.family:
        case "v1":
            # Input of qkv; q, k, v; output, which shifted windows copy before its projection.
            copies, statistics = 6 if shifted else 5, 4 * shape.heads[stage]
        case "v2":
            # As V1, and scaled q and k beside the plain ones, with three fp32 lengths for each
            # vector; shifted windows copy v and the output.
            copies, statistics = 9 if shifted else 7, 28 * shape.heads[stage]
        case "mlp":
            copies, statistics = 1, 0
    mixing = padded * (copies * channels * compute + statistics)
    mlp = tokens * channels * compute * (1 + 2 * shape.mlp_ratio)
    norms = 3 if shape.extra_norm_every and not (block + 1) % shape.extra_norm_every else 2
    return norms * tokens * channels * _FP32_BYTES, mixing, mlp
