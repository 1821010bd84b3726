"""What a run learns: the model, what it is given, and what its outputs are compared with."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.augment.build import augment_of
from pretrain.augment.masking import MaskedAugment
from pretrain.augment.pipeline import Augment
from pretrain.config.schema import RunConfig
from pretrain.engine.classification import hits, soft_target_cross_entropy
from pretrain.engine.engine import Engine
from pretrain.models.build import build
from pretrain.models.masked import MaskedSwin, build_masked, restoration_loss
from pretrain.models.swin import Swin
from pretrain.world import World


@dataclass(frozen=True)
class Objective:
    """Parts that belong together.

    Attributes:
        model: what is trained.
        encoder: the part of it that the run is for: all of it, or what a decoder is put on.
        augment: from a batch of the loader to what `model` takes and what `loss` compares with.
        loss: from the model's outputs and those targets to the loss of each image, fp32 [B].
        hits: from the same to whether each image's class was found, bool [B]; None without classes.
    """

    model: Swin | MaskedSwin
    encoder: Swin
    augment: Augment | MaskedAugment
    loss: Callable[[Tensor, Any], Tensor]
    hits: Callable[[Tensor, Any], Tensor] | None


def objective_of(config: RunConfig) -> Objective:
    """Build what the config asks for: classification, or restoring what is masked.

    The weights follow from torch's current seed.

    Raises:
        ConfigError: the model or the augmentation cannot be built.
    """
    augment = augment_of(config)
    recomputed = config.engine.activation_checkpointing
    if config.masking is None:
        model = build(config.model, recomputed)
        return Objective(model, model, augment, soft_target_cross_entropy, hits)
    masked = build_masked(config.model, recomputed)
    return Objective(masked, masked.encoder, augment, restoration_loss, None)


def engine_of(
    objective: Objective,
    config: RunConfig,
    *,
    micro_batch: int,
    accumulation: int,
    device: torch.device,
    world: World,
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Engine:
    """Build the engine for what is learnt. Every rank.

    Raises:
        EngineError: as `Engine`, whose arguments these are.
    """
    return Engine(
        objective.model,
        engine=config.engine,
        optim=config.optim,
        micro_batch=micro_batch,
        accumulation=accumulation,
        device=device,
        world=world,
        undecayed=objective.model.no_weight_decay_names(),
        depths=objective.model.layer_depths(),
        average=config.ema,
        loss=objective.loss,
        hits=objective.hits,
        stages=objective.model.parameter_stages(),
        around=around,
    )
