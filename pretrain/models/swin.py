"""The Swin family, with the official checkpoints' parameter names.

V1 is arXiv 2103.14030, V2 arXiv 2111.09883, Swin-MLP of the official repository.

Letters: B batch, C channels, H W map height and width, M window side, K = M·M tokens of a window,
N windows of an image, Y classes. Maps are [B, H, W, C] throughout.

The families differ in what mixes a window's tokens (`pretrain.models.mixers`), in where a block
normalises, and on maps of other sizes than built for: V1 shrinks its windows to maps that are no
larger, V2 and Swin-MLP keep theirs and pad, as in transformers (a Swin-MLP fits one window only).

Under autocast the residual stream keeps the parameters' type, in every stage and on every device.
The published training let patch merging round it to 16 bits (with fp16's 11-bit mantissa, not
bf16's 8).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from pretrain.kernels.layer_norm import add_layer_norm, add_normalized, layer_norm
from pretrain.kernels.residual import add_scaled
from pretrain.models.layers import Mlp, PatchEmbed, PatchMerging
from pretrain.models.mixers import CosineAttention, SpatialMlp, WindowAttention
from pretrain.models.variants import (
    STAGES,
    Shape,
    fit_window,
    layer_depth,
    parameter_stage,
    stage_maps,
    trained_windows,
)
from pretrain.models.windows import shift_mask

UNDECAYED_PARTS = ("relative_position_bias_table", "logit_scale", "cpb_mlp")
"""Parts of names whose parameters the recipes do not decay, whatever their shape."""


class Block(nn.Module):
    """Token mixing in windows, then a network per token, each added to the residual stream.

    V1 and Swin-MLP normalise what goes into either, V2 what comes out.

    Args:
        shape: the network's.
        stage: which of its stages the block is in.
        drop_path: stochastic depth, a fraction.
        recompute: "selective_attention" or "selective_mlp" compute that branch again in the
            backward pass; what whole blocks do is the stage's business.
        extra_norm: normalise the residual stream after the block (V2 Huge and Giant).
    """

    def __init__(
        self,
        shape: Shape,
        stage: int,
        drop_path: float,
        recompute: str = "none",
        extra_norm: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.fused_norms = False
        """Compute the norms and the residual sums beside them together; see `use_kernels`."""
        channels, heads = shape.channels[stage], shape.heads[stage]
        window = stage_maps(shape)[stage].window
        self.drop_path = drop_path
        self.post_norm = shape.family == "v2"
        self.norm1 = nn.LayerNorm(channels)
        match shape.family:
            case "v1":
                self.attn = WindowAttention(channels, heads, window)
            case "v2":
                trained = trained_windows(shape)[stage]
                self.attn = CosineAttention(channels, heads, window, trained)
            case "mlp":
                self.attn = None
                self.spatial_mlp = SpatialMlp(heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, shape.mlp_ratio * channels)
        self.norm3 = nn.LayerNorm(channels) if extra_norm else None

    def forward(
        self, x: Tensor, window: int, shift: int, mask: Tensor | None, scales: Tensor | None
    ) -> Tensor:
        """Map [B, H, W, C] to the same.

        Args:
            x: the residual stream.
            window: window side, tokens.
            shift: shift of the windows, tokens; 0 for none.
            mask: as `shift_mask` makes it, where an attention's windows are shifted.
            scales: as `draw_scales` makes it.
        """
        mixing_scale, mlp_scale = (None, None) if scales is None else scales
        mix = partial(self._mix, window=window, shift=shift, mask=mask)
        if self.fused_norms:
            x = self._fused(x, mix, mixing_scale, mlp_scale)
        else:
            mixing = partial(self._branch, mix, self.norm1)
            x = add_branch(x, self._run("selective_attention", mixing, x), mixing_scale)
            mlp = partial(self._branch, self.mlp, self.norm2)
            x = add_branch(x, self._run("selective_mlp", mlp, x), mlp_scale)
        return x if self.norm3 is None else self.norm3(x)

    def _fused(
        self,
        x: Tensor,
        mix: Callable[[Tensor], Tensor],
        mixing_scale: Tensor | None,
        mlp_scale: Tensor | None,
    ) -> Tensor:
        """The same, norms beside residual sums; branches that are run again leave them out."""
        norm1, norm2 = affine(self.norm1), affine(self.norm2)
        if self.post_norm:
            x = add_normalized(x, self._run("selective_attention", mix, x), mixing_scale, *norm1)
            return add_normalized(x, self._run("selective_mlp", self.mlp, x), mlp_scale, *norm2)
        out_dtype = autocast_dtype(x)
        normal = layer_norm(x, *norm1, out_dtype)
        mixed = self._run("selective_attention", mix, normal)
        x, normal = add_layer_norm(x, mixed, mixing_scale, *norm2, out_dtype)
        return add_scaled(x, self._run("selective_mlp", self.mlp, normal), mlp_scale)

    def _run(self, name: str, branch: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return run_again(branch, x) if self.recompute == name else branch(x)

    def _branch(self, branch: Callable[[Tensor], Tensor], norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return norm(branch(x).to(x.dtype)) if self.post_norm else branch(norm(x))

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

    def _mix(self, x: Tensor, window: int, shift: int, mask: Tensor | None) -> Tensor:
        mixer = self.spatial_mlp if self.attn is None else self.attn
        return mixer(x, window, shift, mask)


def run_again(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Compute ``function(x)``, in the backward pass once more instead of keeping what it saves.

    ``function`` draws nothing at random: there is no generator state to copy from the device.
    """
    if not torch.is_grad_enabled():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """Residual sum of [B, …] maps, the branch scaled per image by [B, 1, 1, 1] if there is one."""
    return x + branch if scale is None else x + branch * scale


def affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    """What a layer norm computes with: weight [C], bias [C], and what is added to the variance."""
    return norm.weight, norm.bias, norm.eps


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Type that autocast, where it is on, gives to what a product takes in; else that of ``x``."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class Stage(nn.Module):
    """Blocks on maps of one size, every second one with shifted windows.

    ``downsample``, absent in the last stage, is applied by `Swin`: features are taken before it.
    """

    mask: Tensor | None

    def __init__(
        self, shape: Shape, stage: int, drop_path: Sequence[float], recompute: str
    ) -> None:
        super().__init__()
        side, self.window, self.shift = stage_maps(shape)[stage]
        self.shrinks, self.masks = shape.family == "v1", shape.family != "mlp"
        self.recompute = recompute
        period = shape.extra_norm_every
        self.blocks = nn.ModuleList(
            Block(shape, stage, rate, recompute, period > 0 and (index + 1) % period == 0)
            for index, rate in enumerate(drop_path)
        )
        self.downsample = (
            PatchMerging(shape.channels[stage], post_norm=shape.family == "v2")
            if stage < STAGES - 1
            else None
        )
        padded = side + -side % self.window
        self.mask_shape = (padded, padded, self.window, self.shift)
        mask = None
        if self.masks and self.shift:
            mask = shift_mask(*self.mask_shape, torch.device("cpu"))
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same, any H and W."""
        window, shift = self.window, self.shift
        if self.shrinks:
            window, shift = fit_window(x.shape[1], x.shape[2], self.window)
        mask = self._mask_for(x, window, shift)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)  # noqa: S101 - for the type checker
            layout = (window, shift, mask) if index % 2 else (window, 0, None)
            x = self._run(partial(_call, block, layout, block.draw_scales(x)), x)
        return x

    def _run(self, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        match self.recompute:
            case "full":
                return run_again(block, x)
            case "full_offload":
                with save_on_cpu(pin_memory=x.is_cuda):  # of what is kept, which is x alone
                    return run_again(block, x)
        return block(x)

    def _mask_for(self, x: Tensor, window: int, shift: int) -> Tensor | None:
        """The kept mask where the map is the one trained on, else one made for this map."""
        _, height, width, _ = x.shape
        mask_shape = (height + -height % window, width + -width % window, window, shift)
        if shift == 0 or not self.masks or mask_shape == self.mask_shape:
            return self.mask if shift else None
        return shift_mask(*mask_shape, x.device)


def _call(
    block: Block, layout: tuple[int, int, Tensor | None], scales: Tensor | None, x: Tensor
) -> Tensor:
    """A block as a function of the residual stream."""
    return block(x, *layout, scales)


class Swin(nn.Module):
    """The network, of any `Shape`; weights as torch makes them: `build` initialises as the recipe.

    Args:
        shape: the network's shape; its image size fixes the windows of each stage.
        activation_checkpointing: per stage what the backward pass computes again: "none", each
            block's "selective_attention" or "selective_mlp", or whole blocks, "full";
            "full_offload" keeps their inputs in the host's memory. Results are bit-equal, drop path
            included.
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
            recompute = activation_checkpointing[stage]
            self.layers.append(Stage(shape, stage, rates[:depth], recompute))
            rates = rates[depth:]
        self.norm = nn.LayerNorm(shape.channels[-1])
        classes = shape.num_classes
        self.head = nn.Linear(shape.channels[-1], classes) if classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, Y] of normalised images, float [B, 3, height, width] of any size.

        Without a head, the last stage's mean [B, C].
        """
        x = self.encode(self.patch_embed(images))[-1]
        return self.head(self.norm(x).mean(dim=(1, 2)))

    def forward_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of the four stages at strides 4, 8, 16 and 32, for dense tasks.

        Args:
            images: normalised, float [B, 3, height, width] of any size.

        Returns:
            Per stage [B, C, H, W], with sides rounded up; before the final norm.
        """
        return tuple(x.permute(0, 3, 1, 2) for x in self.encode(self.patch_embed(images)))

    def no_weight_decay_names(self) -> set[str]:
        """Parameters the recipes do not decay: norms, biases, and whatever biases the attention.

        That is V1's relative position tables, and V2's bias networks and logit scales.
        """
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim < 2 or any(part in name for part in UNDECAYED_PARTS)
        }

    def layer_depths(self) -> dict[str, int]:
        """Depth of each parameter for layer-wise decay of the learning rate, see `layer_depth`."""
        return {name: layer_depth(name, self.shape) for name, _ in self.named_parameters()}

    def parameter_stages(self) -> dict[str, int]:
        """Stage of each parameter that counts to one, see `parameter_stage`."""
        stages = {name: parameter_stage(name) for name, _ in self.named_parameters()}
        return {name: stage for name, stage in stages.items() if stage is not None}

    def encode(self, x: Tensor) -> list[Tensor]:
        """Maps [B, H, W, C] of the four stages for a map of embedded patches, before the norm."""
        outputs = []
        for stage in self.layers:
            assert isinstance(stage, Stage)  # noqa: S101 - for the type checker
            outputs.append(stage(x))
            x = outputs[-1] if stage.downsample is None else stage.downsample(outputs[-1])
        return outputs
