"""Windows of a map: cut, shifted, masked, put together again (arXiv 2103.14030, section 3.2).

Letters: B batch, C channels, H W map height and width, M window side, K = M·M tokens of a window,
N windows of an image. Maps are [B, H, W, C].

Maps that windows do not tile are padded with zeros below and to the right, before the shift; the
padding takes part, as in published detectors and in transformers.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MASKED_LOGIT = -100.0
"""Added to the attention between tokens that the shift made neighbours (official value)."""


def cut_windows(maps: Tensor, window: int, shift: int, cyclic: bool) -> Tensor:
    """Shift a map [B, H, W, C] of any size and cut it into windows [B, N, K, C].

    Args:
        maps: the map.
        window: window side, tokens.
        shift: tokens that the windows move down and to the right; 0 for none.
        cyclic: whether what the shift leaves over joins the far side's windows, to be masked; else
            it makes windows of its own, filled with zeros, as Swin-MLP does.
    """
    maps = pad_to_windows(maps, window, _lead(window, shift, cyclic))
    if shift and cyclic:
        maps = maps.roll((-shift, -shift), dims=(1, 2))
    return partition_windows(maps, window)


def pad_to_windows(maps: Tensor, window: int, lead: int = 0) -> Tensor:
    """Add zeros to maps until windows tile them: ``lead`` rows and columns before, the rest after.

    Without a copy where they do already.
    """
    bottom, right = -(maps.shape[1] + lead) % window, -(maps.shape[2] + lead) % window
    if lead or bottom or right:
        maps = F.pad(maps, (0, 0, lead, right, lead, bottom))
    return maps


def paste_windows(
    windows: Tensor, window: int, shift: int, cyclic: bool, height: int, width: int
) -> Tensor:
    """Undo `cut_windows`: windows [B, N, K, C] to the map [B, H, W, C] that was cut."""
    lead = _lead(window, shift, cyclic)
    padded_height, padded_width = height + lead, width + lead
    maps = merge_windows(
        windows,
        window,
        padded_height + -padded_height % window,
        padded_width + -padded_width % window,
    )
    if shift and cyclic:
        maps = maps.roll((shift, shift), dims=(1, 2))
    return maps[:, lead : lead + height, lead : lead + width]


def _lead(window: int, shift: int, cyclic: bool) -> int:
    """Zeros before the map that shift its windows where they do not wrap around."""
    return 0 if cyclic or shift == 0 else window - shift


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
