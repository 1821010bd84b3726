"""What the ranks do in the tests of averaged weights and of layer-wise rates."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.functional as F
from cases_checkpoint import equal, restore, save
from tiny import GLOBAL_BATCH, UNDECAYED, UNDECAYED_TABLES, TinyNet, global_batch, micro_batches
from torch import Tensor

from pretrain import dist
from pretrain.accuracy import measure
from pretrain.checkpoint.resume import verify
from pretrain.config.engine import EngineConfig, OptimConfig
from pretrain.config.schema import AugmentConfig, DataConfig, EmaConfig, EvalConfig
from pretrain.data.manifest import read_manifest
from pretrain.engine import engine as engine_module
from pretrain.engine.engine import Engine
from pretrain.engine.step_result import StepResult
from pretrain.errors import EngineError
from pretrain.world import World

Precision = Literal["fp32", "bf16"]
DECAY = 0.6  # reached at the fourth step: 1 - 4^(-2/3) is 0.603
LAYER_DECAY, LR, WEIGHT_DECAY = 0.5, 4e-3, 0.3
DEPTHS = {"patch": 0, "norm": 1, "relative_position_bias_table": 1, "fc1": 1, "fc2": 2, "head": 3}
STEPS, SAVED, SKIPPED = 7, 4, 2


def depth_of(name: str) -> int:
    return DEPTHS[name.partition(".")[0]]


def make_engine(
    world: World,
    stage: int,
    seed: int = 0,
    average: bool = True,
    precision: Precision = "fp32",
    clip: float = 0.0,
) -> Engine:
    model = TinyNet(seed)
    return Engine(
        model,
        engine=EngineConfig(zero_stage=stage, precision=precision, collective_timeout_seconds=60),
        optim=OptimConfig(
            lr=LR, weight_decay=WEIGHT_DECAY, clip_grad_norm=clip, layer_decay=LAYER_DECAY
        ),
        micro_batch=GLOBAL_BATCH // world.size,
        accumulation=1,
        device=torch.device("cpu"),
        world=world,
        undecayed=UNDECAYED + UNDECAYED_TABLES,
        depths={name: depth_of(name) for name, _ in model.named_parameters()},
        average=EmaConfig(decay=DECAY) if average else None,
    )


def rate(step: int) -> float:
    return LR / (1 + step)


def step_of(engine: Engine, world: World, step: int) -> bool:
    """Take a step; return whether it was skipped."""
    return result_of(engine, world, step).skipped


def result_of(engine: Engine, world: World, step: int) -> StepResult:
    """Take a step, with a NaN on the last rank in one of them."""
    spoil = float("nan") if step == SKIPPED and world.rank == world.size - 1 else 1.0
    batches = micro_batches(step, world.rank, world.size, 1)
    spoilt = ((images * spoil, targets) for images, targets in batches)
    return engine.train_step(spoilt, lr=rate(step))


def follow(averages: dict[str, Tensor], weights: dict[str, Tensor], number: int) -> None:
    """An average as a plain loop over whole tensors, with the published decay."""
    remains = 0.0 if number == 1 else min(DECAY, 1 - number ** (-2 / 3))
    for name, value in weights.items():
        averages.setdefault(name, value.clone()).lerp_(value, 1 - remains)


def plain_torch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and averages of a loop with none of our code or DeepSpeed's, without the NaN."""
    model = TinyNet()
    named = dict(model.named_parameters())
    groups = [
        {
            "params": [value],
            "weight_decay": 0.0 if name in UNDECAYED + UNDECAYED_TABLES else WEIGHT_DECAY,
            "scale": LAYER_DECAY ** (3 - depth_of(name)),
        }
        for name, value in named.items()
    ]
    optimizer = torch.optim.AdamW(groups)
    averages: dict[str, Tensor] = {}
    steps = [step for step in range(STEPS) if step != SKIPPED]
    for number, step in enumerate(steps, start=1):
        images, targets = global_batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group["scale"]
        optimizer.step()
        follow(averages, {name: value.detach() for name, value in named.items()}, number)
    return {name: value.detach() for name, value in named.items()}, averages


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max((float((left[name] - right[name]).abs().max()) for name in left), default=0.0)


def evaluated(engine: Engine, world: World, shards: str) -> dict[str, Any]:
    """A run's evaluation of both, and what the whole weights alone give."""
    config = SimpleNamespace(
        data=DataConfig(path=shards, workers_per_rank=0),
        eval=EvalConfig(batch_size_per_rank=3),
        augment=AugmentConfig(),
        model=SimpleNamespace(image_size=16),
    )
    plan = SimpleNamespace(eval_samples=20, eval_every_steps=1, steps_per_epoch=1, total_steps=1)
    job: Any = SimpleNamespace(
        config=config, plan=plan, manifest=read_manifest(shards), probe=None, world=world
    )
    device = torch.device("cpu")
    config.ema = EmaConfig(decay=DECAY)
    both = measure(job, 1, engine.logits, engine.computing_with, device)
    config.ema = EmaConfig()
    found: dict[str, Any] = {"both": both.values}
    for which in ("raw", "ema"):
        whole = {name: value.tolist() for name, value in engine.full_weights(which).items()}
        model = TinyNet()
        weights = json.loads(dist.broadcast_text(json.dumps(whole)))
        model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        with torch.no_grad():
            alone = measure(job, 1, model, lambda _: nullcontext(), device)
        found[which] = alone.values
    return found


def run(world: World, stage: int, folder: Path, shards: str) -> dict[str, Any]:
    """Train with an average to the end, saving on the way; then take it up from what was saved."""
    engine = make_engine(world, stage)
    averages: dict[str, Tensor] = {}
    exact, skipped, number = [], [], 0
    for step in range(STEPS):
        if step == SAVED:
            save(engine, world, folder, step)
        skipped.append(step_of(engine, world, step))
        number += not skipped[-1]
        weights = engine.full_weights()
        if not skipped[-1]:
            follow(averages, weights, number)
        exact.append(equal(engine.full_weights("ema"), averages))
    before = engine.fragments()
    with engine.computing_with("ema"):
        logits = engine.logits(global_batch(0)[0])
    found: dict[str, Any] = {
        "exact": exact,
        "skipped": skipped,
        "back": equal(engine.fragments(), before),
        "evaluated": evaluated(engine, world, shards),
    }
    found["back"] &= equal(engine.fragments(), before)
    expected_weights, expected_averages = plain_torch()
    found["weights"] = distance(engine.full_weights(), expected_weights)
    found["averages"] = distance(engine.full_weights("ema"), expected_averages)
    found["apart"] = distance(expected_weights, expected_averages)
    model = TinyNet()
    model.load_state_dict(expected_averages)
    found["logits"] = float((logits - model(global_batch(0)[0])).abs().max())
    raw = engine.logits(global_batch(0)[0])
    found["raw_logits"] = float((logits - raw).abs().max())
    end = engine.fragments()
    engine.close()
    twin = make_engine(world, stage, seed=99)
    restore(twin, world, folder)
    for step in range(SAVED, STEPS):
        if step == SAVED + 1:  # evaluating between steps changes nothing
            with twin.computing_with("ema"):
                twin.logits(global_batch(3)[0])
        step_of(twin, world, step)
    found["resumed"] = equal(twin.fragments(), end)
    twin.close()
    return found


def suite(world: World, folder: str, shards: str) -> dict[str, Any]:
    found = {
        str(stage): run(world, stage, Path(folder) / str(stage), shards) for stage in (1, 2, 3)
    }
    without = make_engine(world, 1, average=False)
    try:
        without.full_weights("ema")
    except EngineError as error:
        found["without"] = str(error)
    found["kinds"] = sorted({key.partition("|")[0] for key in without.fragments()})
    without.close()
    # Autocast last: DeepSpeed keeps a process that once trained with it marked as such.
    found["skipping"] = [
        skipping(world, stage, precision) for precision in ("fp32", "bf16") for stage in (1, 2)
    ]
    return found


def skipping(world: World, stage: int, precision: Precision) -> bool:
    """Whether a device that skips by itself leaves every bit as a host that is asked does."""
    ends = []
    for on_device in (True, False):
        with mock.patch.object(engine_module, "skips_on_device", return_value=on_device):
            engine = make_engine(world, stage, precision=precision, clip=0.5)
        norms, losses = [], []
        for step in range(STEPS):
            result = result_of(engine, world, step)
            norms.append(float(result.grad_norm))
            losses.append(repr(float(result.loss_sum)))
        ends.append((engine.fragments(), engine.state(), norms, losses))
        engine.close()
    (left, *rest), (right, *other_rest) = ends
    return equal(left, right) and rest == other_rest and float("inf") in rest[1]


def reopen(world: World, folder: str) -> dict[str, bool]:
    """Load what another world saved: every element of every average is what is in the files."""
    found = {}
    for stage in (1, 2, 3):
        for source in (1, 2, 3):
            engine = make_engine(world, stage, seed=99)
            restore(engine, world, Path(folder) / str(source))
            loaded = engine.full_weights("ema")
            reader = verify(Path(folder) / str(source) / f"step_{SAVED:08d}")
            saved = {name: reader.full("ema", name) for name in loaded}
            found[f"{source} to {stage}"] = reader.has_average and equal(loaded, saved)
            engine.close()
    return found
