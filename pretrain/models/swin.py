"""Swin Transformer V1 (arXiv 2103.14030), with the official checkpoint's parameter names.

Letters: B batch, C channels, H W map height and width, M window side, K = M·M tokens of a window,
N windows of an image, A heads, D head width, Y classes. Maps are [B, H, W, C] throughout.

Maps that windows do not tile are padded with zeros below and to the right, after the norm and
before the shift; the padding takes part in attention, as in published detectors and in
transformers. Relative position indices and shift masks are derived, never saved.

Under autocast the residual stream keeps the parameters' type, in every stage and on every device.
The published training let patch merging round it to 16 bits (with fp16's 11-bit mantissa, not
bf16's 8).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pretrain.models.variants import IMAGE_CHANNELS, STAGES, Shape, fit_window, stage_maps

MASKED_LOGIT = -100.0
"""Added to the attention between tokens that the shift made neighbours (official value)."""


def partition_windows(maps: Tensor, window: int) -> Tensor:
    """Cut maps [B, H, W, C] into windows [B, N, K, C], row by row; H, W multiples of ``window``."""
    batch, height, width, channels = maps.shape
    rows, columns = height // window, width // window
    windows = maps.view(batch, rows, window, columns, window, channels).transpose(2, 3)
    return windows.reshape(batch, rows * columns, window * window, channels)


def merge_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo `partition_windows`: windows [B, N, K, C] to maps [B, H, W, C]."""
    batch, _, _, channels = windows.shape
    rows, columns = height // window, width // window
    maps = windows.view(batch, rows, columns, window, window, channels).transpose(2, 3)
    return maps.reshape(batch, height, width, channels)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window.

    Returns:
        int64 [M, M, M, M], query row and column then key row and column. It depends on their
        differences only, so its leading corner serves smaller windows from the same table.
    """
    side = torch.arange(window)
    offset = side[:, None] - side[None, :] + window - 1  # [M, M], 0 to 2M-2
    return offset[:, None, :, None] * (2 * window - 1) + offset[None, :, None, :]


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Additive mask that keeps apart what only the cyclic shift made neighbours (figure 4).

    Args:
        height: of the padded map, a multiple of ``window``, tokens.
        width: likewise.
        window: window side, tokens.
        shift: cyclic shift, tokens, between 0 and ``window``.
        device: where the mask is made; without waiting for it.

    Returns:
        float32 [N, K, K], 0 or `MASKED_LOGIT`.
    """

    def bands(size: int) -> Tensor:
        position = torch.arange(size, device=device)
        return (position >= size - window).long() + (position >= size - shift).long()

    regions = bands(height)[:, None] * 3 + bands(width)[None, :]
    regions = partition_windows(regions[None, :, :, None], window)[0, :, :, 0]  # [N, K]
    apart = regions[:, :, None] != regions[:, None, :]
    return apart.float() * MASKED_LOGIT


class PatchEmbed(nn.Module):
    """Images [B, 3, height, width] to a map [B, H, W, C] of one token per patch, normalised."""

    def __init__(self, patch_size: int, channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(IMAGE_CHANNELS, channels, patch_size, patch_size)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """Images that patches do not tile are padded with zeros below and to the right."""
        height, width = images.shape[2:]
        pad_bottom, pad_right = -height % self.patch_size, -width % self.patch_size
        if pad_bottom or pad_right:
            images = F.pad(images, (0, pad_right, 0, pad_bottom))
        x = self.proj(images).permute(0, 2, 3, 1)
        return self.norm(x.to(self.norm.weight.dtype))


class PatchMerging(nn.Module):
    """A map [B, H, W, C] to [B, ⌈H/2⌉, ⌈W/2⌉, 2C]: each 2x2 tokens joined and reduced."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Odd maps are padded with zeros below and to the right."""
        _, height, width, _ = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # The official order of the four: down the column first.
        quarters = [x[:, row::2, column::2] for column in range(2) for row in range(2)]
        return self.reduction(self.norm(torch.cat(quarters, dim=-1))).to(x.dtype)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learnt bias per relative position (eq. 4)."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer(
            "relative_position_index", relative_position_index(window), persistent=False
        )

    def forward(self, windows: Tensor, window: int, mask: Tensor | None) -> Tensor:
        """Attend inside each window.

        Args:
            windows: [B, N, K, C].
            window: M, at most the one that the table was made for.
            mask: float [N, K, K] added to the logits of every image and head, or None.

        Returns:
            [B, N, K, C].
        """
        batch, count, tokens, channels = windows.shape
        qkv = self.qkv(windows).view(batch, count, tokens, 3, self.heads, channels // self.heads)
        qkv = qkv.permute(3, 0, 1, 4, 2, 5)  # [3, B, N, A, K, D]
        bias = self.position_bias(window)  # [A, K, K]
        if mask is None:
            query, key, value = qkv.flatten(1, 2)  # [B·N, A, K, D]
        else:
            # Windows join the heads: the bias then broadcasts over the batch instead of filling it.
            query, key, value = qkv.flatten(2, 3)  # [B, N·A, K, D]
            bias = (bias + mask[:, None]).flatten(0, 1)  # [N·A, K, K]
        # Contiguous: the fused kernels of GPUs refuse other layouts, and torch then says nothing.
        bias = bias[None].to(query.dtype).contiguous()
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out = out.view(batch, count, self.heads, tokens, -1).transpose(2, 3)
        return self.proj(out.reshape(windows.shape))

    def position_bias(self, window: int) -> Tensor:
        """The table laid out for the tokens of a window of side ``window``: [A, K, K]."""
        index = self.relative_position_index[:window, :window, :window, :window]
        bias = self.relative_position_bias_table[index.reshape(-1)]  # [K·K, A]
        return bias.view(window**2, window**2, self.heads).permute(2, 0, 1)


class Mlp(nn.Module):
    """Two linear layers with GELU between, on each token alone."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[…, C] to […, C]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Window attention and a network, each normalised before and added to the residual stream."""

    def __init__(
        self, channels: int, heads: int, window: int, hidden: int, drop_path: float
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, hidden)

    def forward(
        self, x: Tensor, window: int, shift: int, mask: Tensor | None, scales: Tensor | None
    ) -> Tensor:
        """Map [B, H, W, C] to the same.

        Args:
            x: the residual stream.
            window: window side, tokens.
            shift: cyclic shift, tokens; 0 for none.
            mask: as `shift_mask` makes it, where ``shift`` > 0.
            scales: as `draw_scales` makes it.
        """
        attention_scale, mlp_scale = (None, None) if scales is None else scales
        x = add_branch(x, self._attend(self.norm1(x), window, shift, mask), attention_scale)
        return add_branch(x, self.mlp(self.norm2(x)), mlp_scale)

    def draw_scales(self, x: Tensor) -> Tensor | None:
        """Stochastic depth (arXiv 1603.09382): 0 or 1/keep for both branches of each image.

        Drawn from torch's generator of the device, outside `forward`, which may be recomputed.

        Returns:
            [2, B, 1, 1, 1] in the residual's type (1/keep rounded to bf16 would scale every branch
            by up to 0.4 %), or None where nothing is dropped.
        """
        if not self.training or self.drop_path == 0.0:
            return None
        keep = 1.0 - self.drop_path
        return x.new_empty(2, x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)

    def _attend(self, x: Tensor, window: int, shift: int, mask: Tensor | None) -> Tensor:
        _, height, width, _ = x.shape
        pad_bottom, pad_right = -height % window, -width % window
        if pad_bottom or pad_right:
            x = F.pad(x, (0, 0, 0, pad_right, 0, pad_bottom))
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
        windows = self.attn(partition_windows(x, window), window, mask)
        x = merge_windows(windows, window, height + pad_bottom, width + pad_right)
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :height, :width]


def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """Residual sum of [B, …] maps, the branch scaled per image by [B, 1, 1, 1] if there is one."""
    return x + branch if scale is None else x + branch * scale


class Stage(nn.Module):
    """Blocks on maps of one size, every second one with shifted windows.

    ``downsample``, absent in the last stage, is applied by `Swin`: features are taken before it.
    """

    mask: Tensor | None

    def __init__(
        self, shape: Shape, stage: int, drop_path: Sequence[float], recompute: bool
    ) -> None:
        super().__init__()
        channels, (side, self.window, shift) = shape.channels[stage], stage_maps(shape)[stage]
        self.recompute = recompute
        self.blocks = nn.ModuleList(
            Block(channels, shape.heads[stage], self.window, shape.mlp_ratio * channels, rate)
            for rate in drop_path
        )
        self.downsample = PatchMerging(channels) if stage < STAGES - 1 else None
        padded = side + -side % self.window
        self.mask_shape = (padded, padded, self.window, shift)
        mask = shift_mask(*self.mask_shape, torch.device("cpu")) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same, any H and W."""
        window, shift = fit_window(x.shape[1], x.shape[2], self.window)
        mask = self._mask_for(x, window, shift)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)  # noqa: S101 - for the type checker
            layout = (window, shift, mask) if index % 2 else (window, 0, None)
            inputs = (x, *layout, block.draw_scales(x))
            if self.recompute and torch.is_grad_enabled():
                # Nothing random inside: no generator state to copy from the device and back.
                x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(*inputs)
        return x

    def _mask_for(self, x: Tensor, window: int, shift: int) -> Tensor | None:
        """The kept mask where the map is the one trained on, else one made for this map."""
        _, height, width, _ = x.shape
        mask_shape = (height + -height % window, width + -width % window, window, shift)
        if shift == 0 or mask_shape == self.mask_shape:
            return self.mask if shift else None
        return shift_mask(*mask_shape, x.device)


class Swin(nn.Module):
    """The network, of any `Shape`; weights as torch makes them: `build` initialises as the recipe.

    Args:
        shape: the network's shape; its image size fixes the windows of each stage.
        activation_checkpointing: per stage "none", or "full" to recompute each block in the
            backward pass; results are bit-equal, drop path included.
    """

    def __init__(
        self, shape: Shape, activation_checkpointing: Sequence[str] = ("none",) * STAGES
    ) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = PatchEmbed(shape.patch_size, shape.embed_dim)
        last = max(sum(shape.depths) - 1, 1)
        rates = [shape.drop_path * block / last for block in range(sum(shape.depths))]
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(shape.depths):
            recompute = activation_checkpointing[stage] == "full"
            self.layers.append(Stage(shape, stage, rates[:depth], recompute))
            rates = rates[depth:]
        self.norm = nn.LayerNorm(shape.channels[-1])
        self.head = nn.Linear(shape.channels[-1], shape.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, Y] of normalised images, float [B, 3, height, width] of any size."""
        x = self._stage_outputs(images)[-1]
        return self.head(self.norm(x).mean(dim=(1, 2)))

    def forward_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of the four stages at strides 4, 8, 16 and 32, for dense tasks.

        Args:
            images: normalised, float [B, 3, height, width] of any size.

        Returns:
            Per stage [B, C, H, W], with sides rounded up; before the final norm.
        """
        return tuple(x.permute(0, 3, 1, 2) for x in self._stage_outputs(images))

    def no_weight_decay_names(self) -> set[str]:
        """Parameters the recipe does not decay: norms, biases and relative position tables."""
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim < 2 or name.endswith("relative_position_bias_table")
        }

    def _stage_outputs(self, images: Tensor) -> list[Tensor]:
        x, outputs = self.patch_embed(images), []
        for stage in self.layers:
            assert isinstance(stage, Stage)  # noqa: S101 - for the type checker
            outputs.append(stage(x))
            x = outputs[-1] if stage.downsample is None else stage.downsample(outputs[-1])
        return outputs
