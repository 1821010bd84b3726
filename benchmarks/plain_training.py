"""A training step in plain torch: what the engine is measured against."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEARNING_RATE, WEIGHT_DECAY, CLIP_GRAD_NORM = 1e-4, 0.05, 5.0
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def fused_adamw(model: nn.Module) -> torch.optim.AdamW:
    """Torch's fused AdamW; norms, biases and position tables are not decayed, as in the recipe."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        bias = parameter.ndim < 2 or "relative_position_bias_table" in name
        (others if bias else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)


def plain_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    precision: str,
    device: torch.device,
    next_batch: Callable[[], tuple[Tensor, Tensor]],
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Callable[[], Tensor]:
    """Return a step with autocast, clipping and, in fp16, torch's own loss scale.

    Args:
        network: from images [B, 3, H, W] to logits [B, Y], fp32 parameters on the device.
        optimizer: of its parameters.
        precision: "bf16" or "fp16" under autocast, or "fp32".
        device: where it trains.
        next_batch: gives images and soft targets, float [B, Y].
        around: as `Engine` takes it: gives what surrounds each part, told by the same names.

    Returns:
        what takes a step and gives its mean loss, fp32 on the device; it waits for nothing.
    """
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")  # pyright: ignore[reportPrivateImportUsage]
    autocast = AUTOCAST.get(precision)
    parameters = list(network.parameters())

    def step() -> Tensor:
        images, targets = next_batch()
        with around("forward"), torch.autocast(device.type, autocast, enabled=autocast is not None):
            logits = network(images)
        with around("loss"):
            loss = F.cross_entropy(logits.float(), targets)
        with around("backward"):
            scaler.scale(loss).backward()
        with around("optimizer"):
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, CLIP_GRAD_NORM)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
