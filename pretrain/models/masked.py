"""Masked-image pre-training of a Swin (SimMIM, arXiv 2111.09886): restore the hidden pixels.

The encoder is the network that is wanted; the token and the decoder are thrown away after training.
Targets are the normalised pixels themselves, as in the paper and for every Swin V1; the official
repository offers targets normalised by their neighbourhood too, and uses them for V2 only.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.config.schema import ModelConfig
from pretrain.models.build import INIT_STD, initialize
from pretrain.models.swin import Swin
from pretrain.models.variants import IMAGE_CHANNELS, STAGES, Shape, masked_shape, shape_of

ENCODER = "encoder."
MASK_TOKEN = "mask_token"  # noqa: S105 - no password


class MaskedSwin(nn.Module):
    """A Swin without a head, a token for hidden patches, and a linear decoder of pixels.

    Args:
        shape: the network's, as `masked_shape` makes it.
        activation_checkpointing: see `Swin`.
    """

    def __init__(
        self, shape: Shape, activation_checkpointing: Sequence[str] = ("none",) * STAGES
    ) -> None:
        super().__init__()
        self.encoder = Swin(shape, activation_checkpointing)
        self.mask_token = nn.Parameter(torch.zeros(shape.embed_dim))
        self.decoder = nn.Conv2d(shape.channels[-1], IMAGE_CHANNELS * shape.stride**2, 1)

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Restore images of which some squares are hidden.

        Args:
            images: normalised, float [B, 3, height, width], square and of whole last-stage tokens.
            hidden: bool [B, S, S] for S squares a side, each of whole patches.

        Returns:
            Every pixel, hidden or not, [B, 3, height, width].
        """
        x = self.encoder.patch_embed(images)
        x = torch.where(enlarge(hidden, x.shape[1]).unsqueeze(-1), self.mask_token, x)
        x = self.encoder.norm(self.encoder.encode(x)[-1])
        pixels = self.decoder(x.permute(0, 3, 1, 2))  # [B, 3·stride², H, W]
        return F.pixel_shuffle(pixels, self.encoder.shape.stride)

    def no_weight_decay_names(self) -> set[str]:
        """Parameters the recipe does not decay: the encoder's, the token and the decoder's bias."""
        undecayed = {f"{ENCODER}{name}" for name in self.encoder.no_weight_decay_names()}
        return undecayed | {MASK_TOKEN, "decoder.bias"}

    def layer_depths(self) -> dict[str, int]:
        """Depth of each parameter, see `layer_depth`: the token's 0, the decoder's the last."""
        depths = {f"{ENCODER}{name}": depth for name, depth in self.encoder.layer_depths().items()}
        last = max(depths.values())
        return {MASK_TOKEN: 0, **depths, "decoder.weight": last, "decoder.bias": last}

    def parameter_stages(self) -> dict[str, int]:
        """Stage of each parameter that counts to one: the token's the first, the decoder's none."""
        stages = self.encoder.parameter_stages()
        return {MASK_TOKEN: 0, **{f"{ENCODER}{name}": stage for name, stage in stages.items()}}


def build_masked(
    model: ModelConfig, activation_checkpointing: Sequence[str] = ("none",) * STAGES
) -> MaskedSwin:
    """Make the model on the CPU in float32; its weights follow from torch's current seed.

    The encoder as `build` makes it, the token a truncated normal, the decoder as torch does
    (official implementation).

    Raises:
        ConfigError: as `shape_of`.
    """
    masked = MaskedSwin(masked_shape(shape_of(model)), activation_checkpointing)
    masked.encoder.apply(initialize)
    nn.init.trunc_normal_(masked.mask_token, std=INIT_STD)
    return masked


def restoration_loss(restored: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    """Mean absolute error of each image over its hidden pixels and their channels.

    The official code divides by the hidden pixels of the whole batch, of which every image has as
    many, plus 1e-5 against there being none.

    Args:
        restored: [B, 3, height, width], any float type.
        targets: images, float [B, 3, height, width], and what is hidden, bool [B, S, S].

    Returns:
        [B], in the images' type.
    """
    images, hidden = targets
    hidden = enlarge(hidden, images.shape[-1]).unsqueeze(1)
    errors = (restored.to(images.dtype) - images).abs() * hidden
    return errors.sum(dim=(1, 2, 3)) / (IMAGE_CHANNELS * hidden.sum(dim=(1, 2, 3)))


def enlarge(squares: Tensor, side: int) -> Tensor:
    """Repeat [B, S, S] to [B, side, side]; S must divide ``side``."""
    times = side // squares.shape[-1]
    return squares.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict that a Swin without a head has; any other one as it is."""
    if MASK_TOKEN not in weights:
        return dict(weights)
    return {
        name.removeprefix(ENCODER): tensor
        for name, tensor in weights.items()
        if name.startswith(ENCODER)
    }
