"""The engine beside plain torch, and real Swins in it: what the cases of its tests share."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from tiny import (
    CLASSES,
    GLOBAL_BATCH,
    UNDECAYED,
    UNDECAYED_TABLES,
    TinyNet,
    global_batch,
    micro_batches,
)

from pretrain import dist
from pretrain.config.engine import EngineConfig, OptimConfig
from pretrain.config.schema import ModelConfig
from pretrain.engine.engine import Engine
from pretrain.engine.step_result import StepResult
from pretrain.models.build import build
from pretrain.world import World

LR = 2e-3
WEIGHT_DECAY = 0.3


def make_engine(
    world: World,
    stage: int,
    *,
    accumulation: int = 1,
    clip: float = 0.0,
    seed: int = 0,
    kind: Literal["adamw", "lamb"] = "adamw",
    **settings: Any,
) -> Engine:
    settings = {"precision": "fp32", "collective_timeout_seconds": 60, **settings}
    return Engine(
        TinyNet(seed),
        engine=EngineConfig(zero_stage=stage, **settings),
        optim=OptimConfig(kind=kind, lr=LR, weight_decay=WEIGHT_DECAY, clip_grad_norm=clip),
        micro_batch=GLOBAL_BATCH // (world.size * accumulation),
        accumulation=accumulation,
        device=torch.device("cpu"),
        world=world,
        undecayed=UNDECAYED + UNDECAYED_TABLES,
    )


def train(engine: Engine, world: World, steps: range, accumulation: int = 1) -> list[StepResult]:
    return [
        engine.train_step(
            micro_batches(step, world.rank, world.size, accumulation), lr=LR / (1 + step)
        )
        for step in steps
    ]


def mean_losses(results: list[StepResult]) -> list[float]:
    sums = dist.sum_across_ranks([float(result.loss_sum) for result in results])
    return [loss / GLOBAL_BATCH for loss in sums]


def plain_torch(steps: int, clip: float, bf16_chunks: int = 0) -> dict[str, Any]:
    """Train without any of our code or DeepSpeed's, on the whole batch in one process."""
    model = TinyNet()
    named = dict(model.named_parameters())
    undecayed = [named[name] for name in UNDECAYED + UNDECAYED_TABLES]
    decayed = [named[name] for name in named if name not in UNDECAYED + UNDECAYED_TABLES]
    groups = [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    losses, norms = [], []
    for step in range(steps):
        images, targets = global_batch(step)
        optimizer.zero_grad()
        total = 0.0
        chunks = bf16_chunks or 1
        for part, soft in zip(images.chunk(chunks), targets.chunk(chunks), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16_chunks > 0):
                logits = model(part)
            loss = F.cross_entropy(logits.float(), soft) / chunks
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = LR / (1 + step)
        optimizer.step()
        losses.append(total)
        norms.append(float(norm))
    weights = {name: value.detach() for name, value in named.items()}
    return {"losses": losses, "norms": norms, "weights": weights}


def worst(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def parity(world: World, cases: list[list[Any]], precision: str) -> list[dict[str, float]]:
    """Largest distance to plain torch for each (stage, accumulation, clip)."""
    steps, found = 5, []
    for stage, accumulation, clip in cases:
        chunks = world.size * accumulation if precision == "bf16" else 0
        expected = plain_torch(steps, clip, chunks)
        engine = make_engine(
            world, stage, accumulation=accumulation, clip=clip, precision=precision
        )
        results = train(engine, world, range(steps), accumulation)
        weights = engine.full_weights()
        differences = [
            float((weights[name] - expected["weights"][name]).abs().max()) for name in weights
        ]
        images = global_batch(0)[0]
        model = TinyNet()
        model.load_state_dict(expected["weights"])
        logits = engine.logits(images)
        found.append(
            {
                "loss": worst(mean_losses(results), expected["losses"]),
                "norm": worst([float(r.grad_norm) for r in results], expected["norms"]),
                "weights": max(differences, default=0.0),
                "logits": float((logits - model(images)).abs().max()),
                "images": results[0].images,
                "logits_fp32": logits.dtype == torch.float32,
            }
        )
        engine.close()
    return found


def moment_norm(world: World, stage: int, clip: float) -> list[float]:
    """Gradient norm of a first step, and the norm of what AdamW was given in it."""
    engine = make_engine(world, stage, clip=clip)
    result = train(engine, world, range(1))[0]
    squares = [
        float(value.double().square().sum())
        for key, value in engine.fragments().items()
        if key.startswith("exp_avg|")
    ]
    engine.close()
    # AdamW's first exp_avg is 0.1 of the gradient it was given.
    return [float(result.grad_norm), dist.sum_across_ranks([sum(squares)])[0] ** 0.5 / 0.1]


def bf16(world: World) -> dict[str, Any]:
    """The default precision, and both types of reduction."""
    cases = [[1, 1, 0.2], [2, 2, 0.2], [3, 1, 0.2]]
    found: dict[str, Any] = {"parity": parity(world, cases, "bf16")}
    for stage, reduce_dtype in ((1, "fp32"), (3, "fp32"), (1, "bf16")):
        engine = make_engine(world, stage, precision="bf16", reduce_dtype=reduce_dtype)
        exact = {name: value.detach() for name, value in TinyNet().named_parameters()}
        weights = engine.full_weights()
        found[f"masters_exact_{stage}_{reduce_dtype}"] = [
            bool(torch.equal(weights[name], exact[name])) for name in weights
        ]
        found[f"loss_{stage}_{reduce_dtype}"] = mean_losses(train(engine, world, range(3)))
        engine.close()
    return found


def swin(world: World, stage: int, checkpointing: str, variant: str = "swin_t") -> list[float]:
    """Losses of a real Swin, small, under autocast with stochastic depth."""
    config = ModelConfig(
        variant=variant, image_size=64, window_size=4, num_classes=CLASSES, drop_path=0.2,
        embed_dim=32, depths=(1, 2, 1, 1), heads=(1, 2, 2, 4),
    )  # fmt: skip
    torch.manual_seed(5)
    model = build(config, (checkpointing,) * 4)
    engine = Engine(
        model,
        engine=EngineConfig(zero_stage=stage, collective_timeout_seconds=60),
        optim=OptimConfig(lr=LR, clip_grad_norm=1.0),
        micro_batch=4,
        accumulation=2,
        device=torch.device("cpu"),
        world=world,
        undecayed=model.no_weight_decay_names(),
    )

    def seeded(step: int) -> Any:
        for micro, (images, targets) in enumerate(micro_batches(step, world.rank, world.size, 2)):
            torch.manual_seed(1000 * step + 10 * world.rank + micro)
            yield F.interpolate(images, size=64), targets

    results = [engine.train_step(seeded(step), lr=LR) for step in range(3)]
    engine.close()
    return mean_losses(results)


def families(world: World) -> dict[str, list[float]]:
    """Losses of the other two families: whole, divided, and divided with activations recomputed."""
    return {
        f"{variant} {stage} {checkpointing}": swin(world, stage, checkpointing, variant)
        for variant in ("swinv2_t", "swin_mlp_t_c24")
        for stage, checkpointing in ((1, "none"), (3, "none"), (3, "full"))
    }
