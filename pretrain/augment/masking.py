"""Masked-image pre-training: which squares of each image are hidden (SimMIM, arXiv 2111.09886)."""

import torch
from torch import Tensor

from pretrain.augment.draws import Stream, draw_bits
from pretrain.augment.pipeline import Augment
from pretrain.augment.transfer import send
from pretrain.config.masking import MaskingConfig


class MaskedAugment:
    """Turns decoded crops into images and what is hidden of them; labels are not looked at.

    Both are a function of the image and its seed, whatever else is in the batch.

    Args:
        augment: what happens to each image alone; its mixing is not done.
        masking: section ``masking`` of the config.
    """

    def __init__(self, augment: Augment, masking: MaskingConfig):
        self.augment = augment
        self.masking = masking

    def __call__(
        self, images_u8: Tensor, labels: Tensor, seeds: Tensor, *, step: int, first_group: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Augment one micro-batch; the arguments are `Augment`'s.

        Returns:
            What the model is given, and the same as what it is held against: images, float32
            [B, 3, H, W], normalised; and what is hidden, bool [B, S, S] for S squares a side.
        """
        side = images_u8.shape[-1]
        (on_device,) = send([seeds], images_u8.device)
        hidden = draw_masks(
            on_device,
            self.masking.squares_per_side(side),
            self.masking.hidden_squares(side),
        )
        batch = (self.augment.augment_samples(images_u8, seeds), hidden)
        return batch, batch


def draw_masks(seeds: Tensor, side: int, hidden: int) -> Tensor:
    """Draw which squares are hidden: for each sample, every choice of so many is equally likely.

    Args:
        seeds: int64 [B], one per sample, on any device.
        side: S, squares along a side of the image.
        hidden: how many of the S·S squares are hidden.

    Returns:
        bool [B, S, S], true where hidden, on the device of ``seeds``.
    """
    squares = torch.arange(side * side, device=seeds.device)
    # 64 bits for each square; those with the lowest are hidden.
    order = draw_bits(seeds[:, None], Stream.MASK, squares).argsort(dim=1, stable=True)
    masks = torch.zeros_like(order, dtype=torch.bool)
    return masks.scatter_(1, order[:, :hidden], value=True).view(-1, side, side)
