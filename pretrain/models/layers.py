"""Parts that every Swin shares: patch embedding, patch merging, the per-token network.

Letters: B batch, C channels, H W map height and width. Maps are [B, H, W, C].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.variants import IMAGE_CHANNELS


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
    """A map [B, H, W, C] to [B, ⌈H/2⌉, ⌈W/2⌉, 2C]: each 2x2 tokens joined and reduced.

    Args:
        channels: C.
        post_norm: normalise the reduced tokens (V2), not the joined ones.
    """

    def __init__(self, channels: int, post_norm: bool) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm = nn.LayerNorm(2 * channels if post_norm else 4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Odd maps are padded with zeros below and to the right."""
        _, height, width, _ = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # The official order of the four: down the column first.
        quarters = [x[:, row::2, column::2] for column in range(2) for row in range(2)]
        joined = torch.cat(quarters, dim=-1)
        if self.post_norm:
            return self.norm(self.reduction(joined).to(x.dtype))
        return self.reduction(self.norm(joined)).to(x.dtype)


class Mlp(nn.Module):
    """Two linear layers with GELU between, on each token alone."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[…, C] to […, C]."""
        return self.fc2(F.gelu(self.fc1(x)))
