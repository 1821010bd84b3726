"""Window attention straight on maps: no shifted, cut or merged copy, no mask, no laid-out logits.

Letters: B batch, H W map height and width, M window side, K = M·M tokens of a window, A heads,
D head width, C = A·D channels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pretrain.kernels.grid import programs

TILE_TOKENS_MAX = 64
"""Tokens of a tile: logits of two tiles, 64 x 64 in fp32, fit the registers of four warps."""
WARPS, BACKWARD_WARPS, STAGES = 4, 8, 2
"""Warps of a program and stages of its pipelines: the fewest warps whose registers hold V1's tiles
on sm_90 (`benchmarks/kernels.py` counts what spills)."""
_PROGRAMS_PER_PROCESSOR = 8


def window_attention(
    qkv: Tensor,
    bias: Tensor,
    logit_scale: Tensor | None,
    *,
    window: int,
    shift: int,
    masked_logit: float,
) -> Tensor:
    """Softmax attention inside (shifted) windows of maps, with a bias per pair of tokens.

    Args:
        qkv: [B, H, W, 3C], queries, keys and values of each token, heads side by side; H and W
            multiples of ``window``. Any float type; logits and softmax are computed in fp32.
        bias: [A, K, K], float, added to the logits.
        logit_scale: fp32 [A]: logits are cosines of queries and keys times it (V2). None: scalar
            products divided by √D (V1).
        window: M.
        shift: cyclic shift of the windows down and to the right, tokens, below M.
        masked_logit: added between tokens that only the shift made neighbours.

    Returns:
        [B, H, W, C] in the type of ``qkv``.
    """
    out, _ = _forward(qkv, bias, logit_scale, window, shift, masked_logit)
    return out


@torch.library.custom_op("swin_pretrain::window_attention", mutates_args=())
def _forward(
    qkv: Tensor, bias: Tensor, logit_scale: Tensor | None, window: int, shift: int, masked: float
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of each row's sum of exponentials, fp32 [B·N, A, K]."""
    from pretrain.kernels.attention_programs import attention_forward

    qkv, bias = qkv.contiguous(), bias.contiguous()
    out, normalizer = _made(qkv, bias)
    launch = _Launch(qkv, bias, logit_scale, window, shift, masked)
    launch(
        attention_forward,
        launch.tiles,
        qkv,
        bias,
        launch.logit_scale,
        out,
        normalizer,
        warps=WARPS,
    )
    return out, normalizer


def _made(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    batch, height, width, channels = qkv.shape
    heads, tokens, _ = bias.shape
    out = qkv.new_empty(batch, height, width, channels // 3)
    windows = batch * height * width // tokens
    return out, qkv.new_empty(windows, heads, tokens, dtype=torch.float32)


@_forward.register_fake
def _(
    qkv: Tensor, bias: Tensor, logit_scale: Tensor | None, window: int, shift: int, masked: float
) -> tuple[Tensor, Tensor]:
    return _made(qkv, bias)


@torch.library.custom_op("swin_pretrain::window_attention_backward", mutates_args=())
def _backward(
    qkv: Tensor,
    bias: Tensor,
    logit_scale: Tensor | None,
    normalizer: Tensor,
    out_grad: Tensor,
    window: int,
    shift: int,
    masked: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``qkv`` (its type), ``bias`` and ``logit_scale`` (fp32)."""
    from pretrain.kernels import attention_programs as kernels

    qkv, bias, out_grad = qkv.contiguous(), bias.contiguous(), out_grad.contiguous()
    launch = _Launch(qkv, bias, logit_scale, window, shift, masked)
    tiles = launch.tiles
    qkv_grad = torch.empty_like(qkv)
    bias_grad = bias.new_empty(launch.groups, *bias.shape, dtype=torch.float32)
    scale_grad = bias.new_zeros(launch.groups, len(bias), tiles, dtype=torch.float32)
    given = (qkv, bias, launch.logit_scale, normalizer, out_grad)
    call = partial(launch, warps=BACKWARD_WARPS)
    if tiles == 1:
        call(kernels.attention_backward, 1, *given, qkv_grad, bias_grad, scale_grad)
    else:
        given = (*given, torch.empty_like(normalizer))  # rows' means, from the first to the others
        call(kernels.attention_backward_queries, tiles, *given, qkv_grad, scale_grad)
        call(kernels.attention_backward_keys, tiles, *given, qkv_grad)
        call(kernels.attention_backward_bias, tiles**2, *given, bias_grad)
    return qkv_grad, bias_grad.sum(0), scale_grad.sum((0, 2))


@_backward.register_fake
def _(
    qkv: Tensor,
    bias: Tensor,
    logit_scale: Tensor | None,
    normalizer: Tensor,
    out_grad: Tensor,
    window: int,
    shift: int,
    masked: float,
) -> tuple[Tensor, Tensor, Tensor]:
    bias_grad = torch.empty_like(bias, dtype=torch.float32)
    return torch.empty_like(qkv), bias_grad, bias_grad.new_empty(len(bias))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias, logit_scale, *ctx.numbers = inputs
    ctx.save_for_backward(qkv, bias, logit_scale, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, out_grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    qkv, bias, logit_scale, normalizer = ctx.saved_tensors
    qkv_grad, bias_grad, scale_grad = _backward(
        qkv, bias, logit_scale, normalizer, out_grad, *ctx.numbers
    )
    scale_grad = None if logit_scale is None else scale_grad.to(logit_scale.dtype)
    return qkv_grad, bias_grad.to(bias.dtype), scale_grad, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


class _Launch:
    """The grid and the constants that all programs of one attention share."""

    def __init__(
        self,
        qkv: Tensor,
        bias: Tensor,
        logit_scale: Tensor | None,
        window: int,
        shift: int,
        masked: float,
    ):
        heads, tokens, _ = bias.shape
        self._constants = program_constants(
            qkv.shape, qkv.dtype, heads, window, shift, masked, cosine=logit_scale is not None
        )
        self.tiles = self._constants["TILES"]
        self._windows = qkv[..., 0].numel() // tokens
        self._heads = heads
        self.groups = min(
            self._windows, -(-programs(qkv.device, _PROGRAMS_PER_PROCESSOR) // (heads * self.tiles))
        )
        self.logit_scale = bias if logit_scale is None else logit_scale  # unread without COSINE

    def __call__(self, program: Any, per_head: int, *tensors: Tensor, warps: int) -> None:
        grid = (self._heads * per_head, self.groups)
        sizes = (self._windows, self.groups)
        program[grid](*tensors, *sizes, **self._constants, num_warps=warps, num_stages=STAGES)


def program_constants(
    qkv_shape: Sequence[int],
    dtype: torch.dtype,
    heads: int,
    window: int,
    shift: int,
    masked: float,
    *,
    cosine: bool,
) -> dict[str, Any]:
    """What the programs are compiled for: [B, H, W, 3C] and type of ``qkv``, and the windows."""
    import triton

    _, height, width, channels = qkv_shape
    depth, tokens = channels // 3 // heads, window**2
    tile = min(max(triton.next_power_of_2(tokens), 16), TILE_TOKENS_MAX)
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "HEADS": heads,
        "D": depth,
        "WINDOW": window,
        "SHIFT": shift,
        "TILE": tile,
        "TILES": -(-tokens // tile),
        "BLOCK_D": max(triton.next_power_of_2(depth), 16),
        "COSINE": cosine,
        "SCALE": 1.0 if cosine else depth**-0.5,
        "MASKED": masked,
        # Else Triton would round fp32 to TF32, which torch does only when asked to.
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
    }
