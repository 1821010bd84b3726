"""Which kernels a run computes with: each is tried on this device, held against plain torch.

A kernel that a device, a driver or a Triton refuses, or that computes something else there, is not
taken; the run says so in one line and does without.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import dist
from pretrain.config.engine import EngineConfig
from pretrain.config.schema import RunConfig
from pretrain.engine.classification import soft_target_cross_entropy
from pretrain.engine.zero_config import AUTOCAST_DTYPES
from pretrain.kernels.cross_entropy import fused_soft_target_cross_entropy
from pretrain.models.build import compile_blocks, use_kernels
from pretrain.models.swin import Block, Swin
from pretrain.models.variants import STAGES, stage_maps
from pretrain.objective import Objective

CAPABILITY_MIN = (8, 0)
"""Of CUDA devices: the first whose tensor cores multiply bf16."""
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference from plain torch, as a fraction of the largest value. What rounding makes of
two orders of the same sums is a tenth of it; a wrong kernel is off by its values."""
_TRIED_IMAGES = 2
_TRIED_CLASSES = 5000  # more than a block of the kernel, and no multiple of one


@dataclass(frozen=True)
class FastPaths:
    """What a run computes with.

    Attributes:
        attention: "plain" or "fused".
        layer_norm: "torch", "apex" or "fused".
        cross_entropy: "plain" or "fused".
        remarks: why something that was asked for, or that this device should run, is not taken.
    """

    attention: str
    layer_norm: str
    cross_entropy: str
    remarks: tuple[str, ...] = ()


def take_fast_paths(
    objective: Objective, config: RunConfig, device: torch.device
) -> tuple[Objective, FastPaths]:
    """Let an objective's model and loss compute by what the config asks for. Every rank.

    Kernels, then compiled blocks. Ranks decide together, so that all of them compute alike.

    Returns:
        The objective, its model changed in place, and what was chosen.
    """
    paths = choose(objective.encoder, config, device)
    use_kernels(
        objective.model,
        attention=paths.attention == "fused",
        layer_norm=paths.layer_norm == "fused",
    )
    if paths.cross_entropy == "fused":
        objective = replace(objective, loss=fused_soft_target_cross_entropy)
    if config.engine.compile:
        compile_blocks(objective.model)
    return objective, paths


def choose(encoder: Swin, config: RunConfig, device: torch.device) -> FastPaths:
    """Try what the config asks for on this device. Every rank.

    Args:
        encoder: the network, not compiled yet; it is left as it is.
        config: the run's.
        device: where this rank computes.
    """
    engine = config.engine
    dtype = getattr(torch, AUTOCAST_DTYPES.get(engine.precision, "float32"))
    remarks: list[str] = []

    def taken(field: str, plain: str, offered: bool, attempt: Callable[[], None]) -> str:
        asked = getattr(engine, field)
        if asked not in ("auto", "fused"):
            return asked
        expected = offered and device.type == "cuda" and dtype != torch.float32
        if asked == "auto" and not expected:
            return plain
        reason = why_unusable(device) if offered else "this model has none of it"
        reason = _first_reason(_outcome(attempt) if reason is None else reason)
        if reason is None:
            return "fused"
        remarks.append(f"engine.{field}: {plain} instead of the fused kernel: {reason}")
        return plain

    attends = encoder.shape.family != "mlp"
    return FastPaths(
        attention=taken(
            "attention", "plain", attends, lambda: try_attention(encoder, device, dtype)
        ),
        layer_norm=taken(
            "layer_norm",
            "torch",
            not _norms_are_others(engine),
            lambda: try_layer_norms(encoder, device, dtype),
        ),
        cross_entropy=taken(
            "cross_entropy",
            "plain",
            config.masking is None,
            lambda: try_cross_entropy(device, dtype),
        ),
        remarks=tuple(remarks),
    )


def _norms_are_others(engine: EngineConfig) -> bool:
    """Whether the compiler joins the norms to what is beside them, or ZeRO 3 has their weights."""
    return engine.layer_norm == "auto" and (engine.compile or engine.zero_stage == 3)


def why_unusable(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on a device, or None; under its interpreter any can."""
    if find_spec("triton") is None:
        return "triton is not installed (CUDA builds of torch bring it)"
    from triton import knobs

    if knobs.runtime.interpret:
        return None
    if device.type != "cuda":
        return f"it needs a CUDA device, this rank computes on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY_MIN:
        found, least = (".".join(map(str, pair)) for pair in (capability, CAPABILITY_MIN))
        return (
            f"it needs compute capability {least}, {torch.cuda.get_device_name(device)} has {found}"
        )
    return None


def _outcome(attempt: Callable[[], None]) -> str | None:
    try:
        attempt()
    except Exception as error:  # noqa: BLE001 - whatever a compiler or a driver comes up with
        line = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {line}"[:300]
    return None


def _first_reason(mine: str | None) -> str | None:
    """The reason of the first rank that has one."""
    if not torch.distributed.is_initialized():
        return mine
    return next((reason for reason in dist.gather_objects(mine) if reason is not None), None)


def try_attention(encoder: Swin, device: torch.device, dtype: torch.dtype) -> None:
    """Attend with and without the kernel on maps as large as each stage's, both kinds of windows.

    Raises:
        ArithmeticError: the results differ; or whatever the compiler and the device raise.
    """
    for number, block, side, window, shift in _stages(encoder, device):
        mixer = block.attn
        assert mixer is not None  # noqa: S101 - Swin-MLP is not tried
        for moved in {0, shift}:
            mask = encoder.layers[number].mask if moved else None  # pyright: ignore
            mask = None if mask is None else mask.to(device)
            x = _drawn((_TRIED_IMAGES, side, side, encoder.shape.channels[number]), device)
            results = []
            for mixer.fused in (True, False):
                results.append(_with_gradients(mixer, (x, window, moved, mask), dtype))
            _compare(f"attention of stage {number + 1}", results, dtype)


def try_layer_norms(encoder: Swin, device: torch.device, dtype: torch.dtype) -> None:
    """Run a block of each stage with and without fused norms, with drop path.

    Raises:
        ArithmeticError: the results differ; or whatever the compiler and the device raise.
    """
    scales = torch.tensor([[0.0, 1.25], [1.5, 0.0]], device=device).view(2, 2, 1, 1, 1)
    for number, block, side, window, _ in _stages(encoder, device):
        x = _drawn((_TRIED_IMAGES, side, side, encoder.shape.channels[number]), device)
        results = []
        for block.fused_norms in (True, False):
            results.append(_with_gradients(block, (x, window, 0, None, scales), dtype))
        _compare(f"layer norms of stage {number + 1}", results, dtype)


def try_cross_entropy(device: torch.device, dtype: torch.dtype) -> None:
    """Compare the losses of some logits and their gradients.

    Raises:
        ArithmeticError: the results differ; or whatever the compiler and the device raise.
    """
    logits = (4 * _drawn((_TRIED_IMAGES, _TRIED_CLASSES), device)).to(dtype)
    targets = _drawn((_TRIED_IMAGES, _TRIED_CLASSES), device).softmax(-1)
    results = []
    for loss in (fused_soft_target_cross_entropy, soft_target_cross_entropy):
        leaf = logits.detach().requires_grad_()
        losses = loss(leaf, targets)
        results.append([losses.detach(), *torch.autograd.grad(losses.sum(), leaf)])
    _compare("cross-entropy", results, dtype)


def _stages(encoder: Swin, device: torch.device) -> Iterable[tuple[int, Block, int, int, int]]:
    """For each stage its number, a block like its, and its map's side, window and shift."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number in range(STAGES):
            block = Block(encoder.shape, number, 0.0).to(device)
            for parameter in block.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.2)
            side, window, shift = stage_maps(encoder.shape)[number]
            yield number, block, side + -side % window, window, shift


def _drawn(shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator).to(device)


def _with_gradients(module: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
    """The output, and the gradients of the first input and of every parameter."""
    first, *others = inputs
    leaf = first.detach().requires_grad_()
    with torch.autocast(first.device.type, dtype, enabled=dtype != torch.float32):
        out = module(leaf, *others)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    wanted = [leaf, *module.parameters()]
    gradients = torch.autograd.grad((out.float() * weights).sum(), wanted, allow_unused=True)
    return [out.detach(), *(gradient for gradient in gradients if gradient is not None)]


def _compare(what: str, results: list[list[Tensor]], dtype: torch.dtype) -> None:
    """Hold what a kernel computed, the first result, against plain torch's, the second."""
    found, expected = results
    if len(found) != len(expected):
        raise ArithmeticError(f"{what}: a gradient is missing")
    for ours, plain in zip(found, expected, strict=True):
        difference = (ours.float() - plain.float()).abs().max()
        if not difference <= TOLERANCES[dtype] * plain.float().abs().max():
            raise ArithmeticError(f"{what}: differs from plain torch by {difference:.3g}")
