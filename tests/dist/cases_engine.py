"""What the ranks of the engine's tests do: each function runs in every rank."""

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from engine_parity import (
    LR,
    bf16,
    families,
    make_engine,
    mean_losses,
    moment_norm,
    parity,
    plain_torch,
    swin,
    train,
)
from tiny import (
    CLASSES,
    UNDECAYED,
    UNDECAYED_TABLES,
    TinyNet,
    global_batch,
    micro_batches,
)

from pretrain import dist
from pretrain.config.engine import EngineConfig, OptimConfig
from pretrain.engine.engine import Engine
from pretrain.errors import EngineError
from pretrain.world import World


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


def overflowing(world: World, stage: int) -> dict[str, Any]:
    """A first step whose gradient is finite in fp32 and whose norm is not; then others."""

    def large() -> Any:
        for images, targets in micro_batches(9, world.rank, world.size, 1):
            yield images, targets * (1e30 if world.rank == 0 else 1.0)

    engine = make_engine(world, stage, clip=1.0)
    before = engine.fragments()
    skipped = engine.train_step(large(), lr=LR).skipped
    unchanged = all(torch.equal(before[key], value) for key, value in engine.fragments().items())
    train(engine, world, range(3))
    after = engine.fragments()
    engine.close()
    twin = make_engine(world, stage, clip=1.0)
    train(twin, world, range(3))
    equal = all(torch.equal(after[key], value) for key, value in twin.fragments().items())
    twin.close()
    return {"skipped": skipped, "unchanged": unchanged, "as_if_unseen": equal}


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
    engine.train_step(drawn(), lr=LR, meanwhile=lambda: events.append("meanwhile"))
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


def suite(world: World, stages: list[int]) -> dict[str, Any]:
    """Everything that one process can tell, which takes most of its time to start."""
    cases = [[s, *rest] for s in stages for rest in ([1, 0.0], [4, 0.0], [1, 0.2], [4, 0.2])]
    return {
        "parity": parity(world, cases, "fp32"),
        "non_finite": {str(s): non_finite(world, s, 2) for s in stages},
        "overflowing": [overflowing(world, stage) for stage in (1, 2)],
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
        "families": families(world),
    }


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
