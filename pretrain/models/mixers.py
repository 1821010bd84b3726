"""What mixes the tokens of a window: V1's attention, V2's, and Swin-MLP's grouped product.

Letters: B batch, C channels, H W map height and width, M window side, K = M·M tokens of a window,
N windows of an image, A heads, D head width. Maps are [B, H, W, C], windows [B, N, K, C]. Relative
position indices and coordinates are derived, never saved.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.kernels.attention import window_attention
from pretrain.models.variants import BIAS_NETWORK_CHANNELS
from pretrain.models.windows import MASKED_LOGIT, cut_windows, pad_to_windows, paste_windows

MAX_LOGIT_SCALE = 100.0
"""Of V2's cosine attention (arXiv 2111.09883, section 3.2: tau is at least 0.01)."""
FIRST_LOGIT_SCALE = 10.0
MAX_POSITION_BIAS = 16.0
"""V2's position bias lies between 0 and this (official implementation)."""
COORDINATE_RANGE = 8.0
"""V2's coordinates are scaled to this before the logarithm, to whose base 1 corresponds."""


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window.

    Returns:
        int64 [M, M, M, M], query row and column then key row and column. It depends on their
        differences only, so its leading corner serves smaller windows from the same table.
    """
    side = torch.arange(window)
    offset = side[:, None] - side[None, :] + window - 1  # [M, M], 0 to 2M-2
    return offset[:, None, :, None] * (2 * window - 1) + offset[None, :, None, :]


def log_coordinates(window: int, trained_window: int) -> Tensor:
    """Log-spaced offsets between the tokens of a window (arXiv 2111.09883, equation 4).

    Args:
        window: M.
        trained_window: the window side whose largest offset becomes 8 before the logarithm, so that
            offsets known from training keep their coordinates in a larger window.

    Returns:
        float32 [(2M-1)², 2], rows as `relative_position_index` numbers them.
    """
    offsets = torch.arange(-(window - 1), window, dtype=torch.float32)
    offsets = offsets / max(trained_window - 1, 1) * COORDINATE_RANGE
    offsets = torch.sign(offsets) * torch.log2(offsets.abs() + 1.0) / math.log2(COORDINATE_RANGE)
    return torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention inside windows; subclasses say what projects, scales and biases.

    Args:
        heads: A.
    """

    qkv: nn.Module
    proj: nn.Linear

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.fused = False
        """Compute by `window_attention`, on the maps themselves."""

    def forward(self, maps: Tensor, window: int, shift: int, mask: Tensor | None) -> Tensor:
        """Attend inside each window.

        Args:
            maps: [B, H, W, C].
            window: M, at most the one that the module was made for.
            shift: of the windows, tokens.
            mask: float [N, K, K] added to the logits of every image and head, as `shift_mask` makes
                it, or None where there is no shift.

        Returns:
            [B, H, W, C].
        """
        _, height, width, _ = maps.shape
        if self.fused:
            qkv = self.project(pad_to_windows(maps, window))
            mixed = window_attention(
                qkv,
                self.position_bias(window),
                self.cosine_scale(),
                window=window,
                shift=shift,
                masked_logit=MASKED_LOGIT,
            )
            return self.proj(mixed[:, :height, :width])
        windows = self.proj(self._attend(cut_windows(maps, window, shift, True), window, mask))
        return paste_windows(windows, window, shift, True, height, width)

    def _attend(self, windows: Tensor, window: int, mask: Tensor | None) -> Tensor:
        query, key, value = split_heads(self.project(windows), self.heads)
        cosine_scale = self.cosine_scale()
        scale = query.shape[-1] ** -0.5 if cosine_scale is None else 1.0
        if cosine_scale is not None:
            length = cosine_scale[:, None, None]
            query, key = to_length(query, length), to_length(key, torch.ones_like(length))
        return attend(query, key, value, self.position_bias(window), mask, scale)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side: [..., C] to [..., 3C]."""
        raise NotImplementedError

    def cosine_scale(self) -> Tensor | None:
        """Factor [A] of the cosines that are the logits; None: products over √D."""
        raise NotImplementedError

    def position_bias(self, window: int) -> Tensor:
        """What is added to the logits in a window of side ``window``: [A, K, K]."""
        raise NotImplementedError


class WindowAttention(Attention):
    """V1: multi-head attention with a learnt bias per relative position (eq. 4)."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__(heads)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer(
            "relative_position_index", relative_position_index(window), persistent=False
        )

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side: [..., C] to [..., 3C]."""
        return self.qkv(x)

    def cosine_scale(self) -> None:
        """None: V1's logits are products."""

    def position_bias(self, window: int) -> Tensor:
        """The table laid out for the tokens of a window of side ``window``: [A, K, K]."""
        index = self.relative_position_index[:window, :window, :window, :window]
        return lay_out_bias(self.relative_position_bias_table, index)


class QkvLinear(nn.Linear):
    """The joint projection of V2, whose bias is put together by its owner.

    A module of its own: ZeRO stage 3 gathers a weight when its own module runs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3 * channels, bias=False)

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """[…, C] to […, 3C], with ``bias`` [3C]."""
        return F.linear(input, self.weight, bias)


class CosineAttention(Attention):
    """V2: scaled cosine attention with a continuous position bias (arXiv 2111.09883, section 3).

    Args:
        channels: C.
        heads: A.
        window: M.
        trained_window: window side that the position bias was trained with.
    """

    relative_position_index: Tensor
    relative_coords_table: Tensor

    def __init__(self, channels: int, heads: int, window: int, trained_window: int) -> None:
        super().__init__(heads)
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(FIRST_LOGIT_SCALE)))
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, BIAS_NETWORK_CHANNELS),
            nn.ReLU(),
            nn.Linear(BIAS_NETWORK_CHANNELS, heads, bias=False),
        )
        self.qkv = QkvLinear(channels)
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        self.proj = nn.Linear(channels, channels)
        self.register_buffer(
            "relative_coords_table", log_coordinates(window, trained_window), persistent=False
        )
        self.register_buffer(
            "relative_position_index", relative_position_index(window), persistent=False
        )

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side: [..., C] to [..., 3C]; keys have no bias."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        return self.qkv(x, bias)

    def cosine_scale(self) -> Tensor:
        """Factor [A] of the cosines, at most 100."""
        return self.logit_scale.clamp(max=math.log(MAX_LOGIT_SCALE)).exp().flatten()

    def position_bias(self, window: int) -> Tensor:
        """The bias between the tokens of a window of side ``window``: [A, K, K], 0 to 16.

        In the parameters' type even under autocast: with bf16's 8 bits, far offsets of large
        windows would have the same coordinates.
        """
        coordinates = self.relative_coords_table.to(self.logit_scale.dtype)
        with torch.autocast(coordinates.device.type, enabled=False):
            table = MAX_POSITION_BIAS * torch.sigmoid(self.cpb_mlp(coordinates))
        index = self.relative_position_index[:window, :window, :window, :window]
        return lay_out_bias(table, index)


class SpatialMlp(nn.Conv1d):
    """Swin-MLP: one linear map over the tokens of a window for each head, as a grouped product."""

    def __init__(self, heads: int, window: int) -> None:
        super().__init__(heads * window**2, heads * window**2, kernel_size=1, groups=heads)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - it is more than a product
        self, maps: Tensor, window: int, shift: int, mask: None = None
    ) -> Tensor:
        """Maps [B, H, W, C] to the same, in windows of the side that the module was made for."""
        _, height, width, _ = maps.shape
        input = cut_windows(maps, window, shift, cyclic=False)
        batch, count, tokens, channels = input.shape
        grouped = input.view(batch * count, tokens, self.groups, channels // self.groups)
        grouped = grouped.transpose(1, 2).flatten(1, 2)  # [B·N, A·K, D]
        mixed = super().forward(grouped).unflatten(1, (self.groups, tokens))
        mixed = mixed.transpose(1, 2).reshape(input.shape)
        return paste_windows(mixed, window, shift, False, height, width)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Joint projections [B, N, K, 3C] to queries, keys and values, each [B, N, A, K, D]."""
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    return query, key, value


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Softmax attention inside windows.

    Args:
        query: [B, N, A, K, D].
        key: [B, N, A, K, D].
        value: [B, N, A, K, D].
        bias: [A, K, K] added to the scaled logits.
        mask: [N, K, K] added likewise, or None.
        scale: factor of the logits.

    Returns:
        [B, N, K, C].
    """
    batch, count, heads, tokens, _ = query.shape
    if mask is None:
        join = (0, 1)  # [B·N, A, K, D]
    else:
        # Windows join the heads: the bias then broadcasts over the batch instead of filling it.
        join = (1, 2)  # [B, N·A, K, D]
        bias = (bias + mask[:, None]).flatten(0, 1)  # [N·A, K, K]
    query, key, value = query.flatten(*join), key.flatten(*join), value.flatten(*join)
    # Contiguous: the fused kernels of GPUs refuse other layouts, and torch then says nothing.
    bias = bias[None].to(query.dtype).contiguous()
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    out = out.view(batch, count, heads, tokens, -1).transpose(2, 3)
    if torch.compiler.is_exporting():
        # The kernel that a trace meets decides the memory order: another may read it elsewhere.
        out = out.clone(memory_format=torch.contiguous_format)
    return out.reshape(batch, count, tokens, -1)


def lay_out_bias(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table [(2M-1)², A] by an index [M, M, M, M] (or a corner) to a bias [A, K, K]."""
    tokens = index.shape[0] * index.shape[1]
    return table[index.reshape(-1)].view(tokens, tokens, -1).permute(2, 0, 1)


def to_length(vectors: Tensor, length: Tensor) -> Tensor:
    """Scale each vector [B, N, A, K, D] to ``length`` [A, 1, 1], keeping its type.

    Lengths are computed in fp32 at least: rounded to bf16 they would move logits of up to 100 by
    0.4. Vectors shorter than 1e-12, as keys of padding are, stay shorter.
    """
    precise = torch.promote_types(vectors.dtype, torch.float32)
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=precise)
    return (vectors * (length / norm.clamp_min(1e-12))).to(vectors.dtype)
