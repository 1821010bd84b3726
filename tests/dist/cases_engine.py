"""What the ranks of the engine's tests do: each function runs in every rank."""

import os
import sys
from pathlib import Path
from typing import Any, Literal
from unittest import mock

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
from pretrain.engine.engine import Engine, StepResult
from pretrain.errors import EngineError
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


def flip_one_bit(parameter: torch.Tensor) -> None:
    parameter.data.view(-1).view(torch.int32)[-1] ^= 1


def non_finite(world: World, stage: int, accumulation: int) -> dict[str, Any]:
    """One rank's third step holds a NaN; a twin never sees that step."""

    def poisoned(step: int) -> Any:
        for images, targets in micro_batches(step, world.rank, world.size, accumulation):
            yield (images * float("nan") if world.rank == 1 else images), targets

    engine = make_engine(world, stage, accumulation=accumulation, clip=1.0)
    train(engine, world, range(2), accumulation)
    before = engine.fragments()
    skipped = engine.train_step(poisoned(2), lr=LR)
    unchanged = all(torch.equal(before[key], value) for key, value in engine.fragments().items())
    state = engine.state()
    engine.load_fragments(lambda kind, name, start, _: before[f"{kind}|{name}|{start}"], **state)
    resumed = engine.state()
    train(engine, world, range(3, 5), accumulation)
    after = engine.fragments()
    digests = [dist.gather_objects(engine.weights_digest())]
    if world.rank == 1:
        flip_one_bit(next(p for p in engine._zero.module.parameters() if p.numel() > 1))
    digests.append(dist.gather_objects(engine.weights_digest()))
    engine.close()
    twin = make_engine(world, stage, accumulation=accumulation, clip=1.0)
    train(twin, world, range(2), accumulation)
    train(twin, world, range(3, 5), accumulation)
    equal = all(torch.equal(after[key], value) for key, value in twin.fragments().items())
    twin.close()
    return {
        "skipped": skipped.skipped,
        "norm": str(float(skipped.grad_norm)),
        "unchanged": unchanged,
        "state": state,
        "resumed": resumed,
        "as_if_unseen": equal,
        "digests": digests,
    }


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


def bad_calls(world: World) -> list[str]:
    """Messages for wrong sizes, too few micro-batches, another model, a frozen parameter."""
    messages = []
    engine = make_engine(world, 1, accumulation=2)
    whole = list(micro_batches(0, world.rank, world.size, 2))
    for micro in ([(images[1:], targets[1:]) for images, targets in whole], whole[:1]):
        try:
            engine.train_step(iter(micro), lr=LR)
        except EngineError as error:
            messages.append(str(error))
    other = engine.parameter_shapes() | {"head.weight": (CLASSES + 1, 23), "tail.weight": (3,)}
    try:
        engine.load_fragments(lambda *_: torch.zeros(0), 1, saved_shapes=other)
    except EngineError as error:
        messages.append(str(error))
    engine.close()
    frozen = TinyNet()
    frozen.norm.weight.requires_grad_(False)
    try:
        Engine(
            frozen,
            engine=EngineConfig(),
            optim=OptimConfig(lr=LR),
            micro_batch=1,
            accumulation=1,
            device=torch.device("cpu"),
            world=world,
            undecayed=UNDECAYED + UNDECAYED_TABLES,
        )
    except EngineError as error:
        messages.append(str(error))
    return messages


def lazily(world: World) -> list[str]:
    """The order in which micro-batches are drawn and passes run."""
    events: list[str] = []
    engine = make_engine(world, 1, accumulation=2)

    def drawn() -> Any:
        for index, batch in enumerate(micro_batches(0, world.rank, world.size, 2)):
            events.append(f"drawn {index}")
            yield batch
        events.append("beyond")

    stop = engine._zero.register_forward_pre_hook(lambda *_: events.append("forward"))
    engine.train_step(drawn(), lr=LR)
    stop.remove()
    engine.close()
    return events


def device_waits(world: World, stage: int) -> int:
    """How often DeepSpeed waits for the device in four steps; its timers sleep through two."""
    engine = make_engine(world, stage, accumulation=2)
    from deepspeed.accelerator import get_accelerator

    waits: list[int] = []
    with mock.patch.object(get_accelerator(), "synchronize", lambda *_: waits.append(1)):
        train(engine, world, range(4), 2)
    engine.close()
    return len(waits)


def starts_as_rank_zero(world: World, stage: int) -> bool:
    """Whether this rank's part of the weights is rank zero's, though each rank made others."""
    engine = make_engine(world, stage, seed=world.rank)
    expected = dict(TinyNet(0).named_parameters())
    found = []
    for key, value in engine.fragments().items():
        kind, name, start = key.split("|")
        if kind == "master":
            part = expected[name].detach().view(-1)[int(start) : int(start) + len(value)]
            found.append(torch.equal(value, part))
    engine.close()
    return bool(found) and all(found)


def evaluation_between(world: World, stage: int) -> bool:
    """Whether evaluating between steps leaves training as it was, to the bit."""
    ends = []
    for evaluate in (False, True):
        engine = make_engine(world, stage, accumulation=2)
        for step in range(4):
            train(engine, world, range(step, step + 1), 2)
            if evaluate:
                engine.logits(global_batch(9)[0][: 3 + step])
        ends.append(engine.fragments())
        engine.close()
    return all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


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


def suite(world: World, stages: list[int]) -> dict[str, Any]:
    """Everything that one process can tell, which takes most of its time to start."""
    cases = [[s, *rest] for s in stages for rest in ([1, 0.0], [4, 0.0], [1, 0.2], [4, 0.2])]
    return {
        "parity": parity(world, cases, "fp32"),
        "non_finite": {str(s): non_finite(world, s, 2) for s in stages},
        "unclipped": [moment_norm(world, stage, 0.0) for stage in stages],
        "clipped": [moment_norm(world, stage, 0.05) for stage in stages],
        "bad_calls": bad_calls(world),
        "lazily": lazily(world),
        "device_waits": [device_waits(world, stage) for stage in stages],
        "starts_as_rank_zero": dist.gather_objects(
            [starts_as_rank_zero(world, stage) for stage in stages]
        ),
        "evaluation_between": [evaluation_between(world, stage) for stage in stages],
        "linear_untouched": F.linear.__module__,
        # Last: DeepSpeed keeps a process that once trained with autocast marked as such.
        "bf16": bf16(world),
        "swin": {
            f"{stage} {checkpointing}": swin(world, stage, checkpointing)
            for stage in stages
            for checkpointing in ("none", "full")
        },
        "families": {
            f"{variant} {stage}": swin(world, stage, "full" if stage == 3 else "none", variant)
            for variant in ("swinv2_t", "swin_mlp_t_c24")
            for stage in (1, 3)
        },
    }


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


def alone(_: World) -> dict[str, Any]:
    """One process, no launcher's environment and no compiler, whole steps in every stage."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        del os.environ[name]
    os.environ["PATH"] = ""
    dist.shutdown()
    world = World()
    dist.initialize(world, torch.device("cpu"), timeout_seconds=60)
    losses = []
    for stage, settings in ((1, {}), (2, {"offload": "optimizer"}), (3, {}), (1, {"kind": "lamb"})):
        engine = make_engine(world, stage, **settings)
        losses.append(mean_losses(train(engine, world, range(2))))
        engine.close()
    compilers = ("torch._inductor.compile_fx", "torch.utils.cpp_extension")
    return {
        "losses": losses,
        "expected": plain_torch(2, 0.0)["losses"],
        "compilers": [name for name in compilers if name in sys.modules],
        "extensions": [str(path) for path in Path(os.environ["TORCH_EXTENSIONS_DIR"]).rglob("*")],
    }


def hang(world: World, folder: str) -> str:
    """Rank 1 stops answering; rank 0 must find out by the timeout of ZeRO's own group."""
    done = Path(folder) / "rank 0 gave up"
    engine = make_engine(world, 1, collective_timeout_seconds=3)
    train(engine, world, range(1))
    if world.rank == 1:
        while not done.exists():
            torch.ones(1).sum()
        os._exit(0)
    try:
        train(engine, world, range(1, 2))
    except RuntimeError as error:
        done.touch()
        print(f"gave up: {error}", flush=True)
        os._exit(3)
    return "finished without rank 1"
