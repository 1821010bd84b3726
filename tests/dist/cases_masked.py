"""What the ranks do in the test of masked pre-training: the run's own objective and engine."""

from collections.abc import Iterator
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_tools.painting import KINDS, paint
from pretrain import dist
from pretrain.config.schema import RunConfig
from pretrain.data.crop import resize
from pretrain.engine.engine import Engine
from pretrain.engine.param_groups import parameter_groups
from pretrain.models.masked import enlarge
from pretrain.objective import Objective, objective_of
from pretrain.world import World

GLOBAL_BATCH, ACCUMULATION, SIDE = 8, 2, 64
CONFIG = RunConfig.model_validate_json(
    """{
      "name": "masked",
      "data": {"path": "/nowhere", "eval_split": null},
      "model": {"variant": "swin_t", "image_size": 64, "window_size": 4, "num_classes": 3,
                "embed_dim": 32, "depths": [1, 2, 1, 1], "heads": [1, 2, 4, 8]},
      "masking": {"patch_size": 8, "ratio": 0.6},
      "augment": {"randaugment": null, "erase_probability": 0, "mix_probability": 0,
                  "label_smoothing": 0},
      "optim": {"lr": 2e-3, "clip_grad_norm": 5.0},
      "schedule": {"epochs": 1},
      "batch": {"global_size": 8, "micro_size_max": 2},
      "engine": {"precision": "fp32", "collective_timeout_seconds": 60}
    }"""
)


def photographs(step: int) -> tuple[Tensor, Tensor]:
    """New images of every step, uint8 [B, 3, H, W], and their seeds."""
    images = []
    for index in range(GLOBAL_BATCH):
        random = np.random.default_rng([step, index])
        images.append(resize(paint(KINDS[index % len(KINDS)], random), SIDE, SIDE))
    return torch.stack(images), torch.arange(GLOBAL_BATCH) + 1000 * step


def micro_batches(objective: Objective, step: int, first: int, count: int) -> Iterator[Any]:
    """Micro-batches ``first`` onwards of the step's global batch, of ``count`` images each."""
    images, seeds = photographs(step)
    for start in range(first * count, GLOBAL_BATCH, count):
        part = slice(start, start + count)
        labels = torch.zeros(count, dtype=torch.int64)
        yield objective.augment(images[part], labels, seeds[part], step=step, first_group=0)


def fresh_objective(config: RunConfig) -> Objective:
    torch.manual_seed(config.seed)
    return objective_of(config)


def trained(world: World, config: RunConfig, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """Mean loss of each step and the weights on rank zero."""
    objective = fresh_objective(config)
    count = GLOBAL_BATCH // (world.size * ACCUMULATION)
    engine = Engine(
        objective.model,
        engine=config.engine,
        optim=config.optim,
        micro_batch=count,
        accumulation=ACCUMULATION,
        device=torch.device("cpu"),
        world=world,
        undecayed=objective.model.no_weight_decay_names(),
        loss=objective.loss,
    )
    losses = []
    for step in range(steps):
        batches = micro_batches(objective, step, world.rank * ACCUMULATION, count)
        losses.append(float(engine.train_step(batches, lr=config.optim.lr).loss_sum))
    weights = engine.full_weights()
    engine.close()
    return [loss / GLOBAL_BATCH for loss in dist.sum_across_ranks(losses)], weights


def plain_torch(steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """The same on the whole batch in one process, without the engine."""
    objective = fresh_objective(CONFIG)
    parameters = dict(objective.model.named_parameters())
    groups = parameter_groups(
        parameters, CONFIG.optim.weight_decay, objective.model.no_weight_decay_names()
    )
    optimizer = torch.optim.AdamW(groups, lr=CONFIG.optim.lr)
    losses = []
    for step in range(steps):
        inputs, targets = next(micro_batches(objective, step, 0, GLOBAL_BATCH))
        optimizer.zero_grad()
        loss = objective.loss(objective.model(*inputs), targets).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), CONFIG.optim.clip_grad_norm)
        optimizer.step()
        losses.append(float(loss))
    return losses, {name: value.detach() for name, value in parameters.items()}


def against_mean_colour(steps: int, last: int) -> tuple[float, float]:
    """Mean loss of the last steps on a pool of photographs, and that of a guess.

    The guess is the mean colour of what is shown of each image.
    """
    pool = torch.cat([photographs(step)[0] for step in range(40)])
    objective = fresh_objective(CONFIG)
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=CONFIG.optim.lr)
    generator = torch.Generator().manual_seed(0)
    losses, guesses = [], []
    for step in range(steps):
        chosen = torch.randint(len(pool), (16,), generator=generator)
        inputs, targets = objective.augment(
            pool[chosen], chosen, chosen + 1000 * step, step=step, first_group=0
        )
        loss = objective.loss(objective.model(*inputs), targets).mean()
        optimizer.param_groups[0]["lr"] = CONFIG.optim.lr * min(1.0, (step + 1) / 20)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.model.parameters(), 5.0)
        optimizer.step()
        if step >= steps - last:
            losses.append(loss.item())
            images, hidden = inputs
            shown = ~enlarge(hidden, SIDE).unsqueeze(1)
            colour = (images * shown).sum((2, 3)) / shown.sum((2, 3))
            guess = colour[..., None, None].expand_as(images)
            guesses.append(objective.loss(guess, targets).mean().item())
    return mean(losses), mean(guesses)


def suite(world: World, steps: int, long: int) -> dict[str, Any]:
    expected, weights = plain_torch(steps)
    found: dict[str, Any] = {}
    for stage in (1, 3):
        engine = CONFIG.engine.model_copy(update={"zero_stage": stage})
        losses, ours = trained(world, CONFIG.model_copy(update={"engine": engine}), steps)
        found[str(stage)] = {
            "loss": max(abs(a - b) for a, b in zip(losses, expected, strict=True)),
            "weights": max(
                (float((ours[name] - weights[name]).abs().max()) for name in ours), default=0.0
            ),
        }
    bf16 = CONFIG.engine.model_copy(update={"precision": "bf16"})
    found["long"] = trained(world, CONFIG.model_copy(update={"engine": bf16}), long)[0]
    return found
