"""Ranks that train a small Swin with and without a profile of it; see test_profile_ranks.py."""

from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from pretrain.config.engine import EngineConfig, OptimConfig
from pretrain.config.profile import ProfileConfig
from pretrain.config.schema import ModelConfig
from pretrain.engine.engine import Engine
from pretrain.models.build import build
from pretrain.models.cost import count_forward_macs
from pretrain.models.variants import shape_of
from pretrain.profile.memory import find_peak
from pretrain.profile.profiler import Profiler
from pretrain.profile.trace import read_trace, take_apart
from pretrain.run_directory import RunDirectory
from pretrain.world import World

MODEL = ModelConfig(
    variant="swin_t", image_size=32, window_size=4, num_classes=4, embed_dim=16,
    depths=(1, 1, 3, 1), heads=(1, 2, 4, 8), drop_path=0.1,
)  # fmt: skip
MICRO_BATCH, ACCUMULATION, FIRST_STEP, STEPS = 4, 2, 2, 2


def batches(step: int, world: World) -> Any:
    generator = torch.Generator().manual_seed(100 * step + world.rank)
    while True:
        torch.manual_seed(step)
        images = torch.randn(MICRO_BATCH, 3, 32, 32, generator=generator)
        labels = torch.randint(4, (MICRO_BATCH,), generator=generator)
        yield images, F.one_hot(labels, 4).float()


def train(world: World, stage: int, recompute: str, profiler_of: Any) -> list[float]:
    """Losses of some steps, with what `profiler_of` makes of the model around them."""
    torch.manual_seed(0)
    model = build(MODEL, (recompute,) * 4)
    profiler = profiler_of(model)
    engine = Engine(
        model,
        engine=EngineConfig(precision="fp32", zero_stage=stage),  # pyright: ignore
        optim=OptimConfig(lr=1e-3),
        micro_batch=MICRO_BATCH,
        accumulation=ACCUMULATION,
        device=torch.device("cpu"),
        world=world,
        undecayed=model.no_weight_decay_names(),
        around=profiler.range,
    )
    losses = []
    with profiler:
        for step in range(FIRST_STEP + STEPS + 1):
            drawn = islice(batches(step, world), ACCUMULATION)
            losses.append(engine.train_step(drawn, 1e-3).loss_sum.item())
            profiler.step_done(step + 1)
    engine.close()
    return losses


def job_of(world: World, folder: Path, stage: int, recompute: str, **profile: Any) -> Any:
    """What the profiler reads of a job."""
    settings = ProfileConfig(first_step=FIRST_STEP, **profile)
    engine = EngineConfig(
        precision="fp32",
        zero_stage=stage,  # pyright: ignore
        activation_checkpointing=(recompute,) * 4,  # pyright: ignore
    )
    config = SimpleNamespace(
        name="small", model=MODEL, engine=engine, masking=None, profile=settings
    )
    plan = SimpleNamespace(
        micro_batch=MICRO_BATCH, accumulation=ACCUMULATION, memory={"parameters": 1000},
        global_batch=MICRO_BATCH * ACCUMULATION * world.size, forward_macs_per_image=0,
    )  # fmt: skip
    return SimpleNamespace(
        config=config, plan=plan, world=world, device="cpu", threads=1, attempt=1,
        run=RunDirectory(folder),
    )  # fmt: skip


def _is_in(part: str, where: Any) -> bool:
    return where.part == part


def seen(trace: Path) -> dict[str, Any]:
    """What a test judges of one trace."""
    profile = take_apart(read_trace(trace))
    total = sum(piece.end - piece.start for piece in profile.slices)

    def share(wanted: Any) -> float:
        found = (piece for piece in profile.slices if wanted(piece.where))
        return sum(piece.end - piece.start for piece in found) / total

    span = profile.steps[-1][1] - profile.steps[0][0]
    inside = ("forward", "backward")
    peak = find_peak(profile)
    assert peak is not None
    return {
        "steps": len(profile.steps),
        "covered": total / span,
        "unknown": share(
            lambda where: (
                where.part in inside
                and not where.place
                and where.kind not in ("collectives", "gradients, ZeRO", "loss")
                and where.name not in inside  # Python between the parts: ZeRO's hooks
            )
        ),
        "shares": [share(partial(_is_in, part)) for part in (*inside, "optimizer")],
        "collectives": share(lambda where: where.kind == "collectives"),
        "again": share(lambda where: where.way == "again"),
        "stage 3": share(lambda where: where.place == "stage 3"),
        "stage 2": share(lambda where: where.place == "stage 2"),
        "flops": {
            way: sum(count for (_, key), count in profile.flops.items() if key == way)
            for way in ("forward", "again", "backward")
        },
        "kept": peak.kept,
    }


def with_and_without(world: World, folder: str, stage: int, recompute: str) -> dict[str, Any]:
    """Train twice; what came of it, and what is seen of the trace where one was asked for."""
    told: list[dict[str, Any]] = []

    def note(kind: str, **fields: Any) -> None:
        told.append({"event": kind, **fields})

    def train_with(**profile: Any) -> list[float]:
        job = job_of(world, Path(folder), stage, recompute, **profile)
        return train(world, stage, recompute, lambda model: Profiler(job, model, note))

    plain, profiled = train_with(), train_with(steps=STEPS)
    result = {"equal": plain == profiled, "losses": profiled, "told": told}
    if told:
        result |= seen(Path(told[0]["trace"]))
        result["page"] = Path(told[0]["summary"]).read_text()
    return result


def forward_flops() -> int:
    """Of one rank's forward passes over the profiled steps, by the plan's formula."""
    return STEPS * ACCUMULATION * MICRO_BATCH * 2 * count_forward_macs(shape_of(MODEL))
