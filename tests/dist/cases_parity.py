"""The engine beside a plain loop: one combination of settings at a time, in every rank."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tiny import CLASSES, GLOBAL_BATCH, micro_batches
from torch import Tensor, nn

from pretrain import dist
from pretrain.config.engine import EngineConfig, OptimConfig
from pretrain.config.schema import EmaConfig, ModelConfig
from pretrain.engine.engine import Engine
from pretrain.models.build import build, compile_blocks
from pretrain.models.swin import Swin
from pretrain.world import World

STEPS, LR, WEIGHT_DECAY, EMA_DECAY, LAYER_DECAY = 3, 2e-3, 0.3, 0.6, 0.7
EPS = 1e-4
"""Large, so that gradients which are rounding noise (keys' biases) move nothing."""
LOSS_SCALE = 1024.0
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    stage: int = 1
    offload: str = "none"
    precision: str = "fp32"
    accumulation: int = 1
    clip: float = 0.0
    recompute: str = "none"
    average: bool = False
    layer_decay: float = 1.0
    kind: str = "adamw"
    implementation: str = "torch"
    compiled: bool = False
    family: str = "swin_t"


def make_model(case: Case) -> Swin:
    """A Swin with shifted windows, and parameters on both sides of stage 3's threshold."""
    heads = (1, 2, 4, 4)
    config = ModelConfig(
        variant=case.family, image_size=32, window_size=4, num_classes=CLASSES,  # pyright: ignore[reportArgumentType]
        embed_dim=16, depths=(2, 1, 1, 1), heads=heads,
    )  # fmt: skip
    torch.manual_seed(5)
    return build(config, (case.recompute,) * 4)


def make_engine(
    world: World,
    case: Case,
    loss_scale: float = LOSS_SCALE,
    model: Swin | None = None,
    stages: dict[str, int] | None = None,
) -> Engine:
    model = make_model(case) if model is None else model
    if case.compiled:
        compile_blocks(model, backend="aot_eager")
    return Engine(
        model,
        engine=EngineConfig(
            zero_stage=case.stage,  # pyright: ignore[reportArgumentType]
            offload=case.offload,  # pyright: ignore[reportArgumentType]
            precision=case.precision,  # pyright: ignore[reportArgumentType]
            loss_scale_init=loss_scale,
            loss_scale_growth_steps=2,
            collective_timeout_seconds=60,
        ),
        optim=OptimConfig(
            kind=case.kind,  # pyright: ignore[reportArgumentType]
            implementation=case.implementation,  # pyright: ignore[reportArgumentType]
            lr=LR,
            eps=EPS,
            weight_decay=WEIGHT_DECAY,
            clip_grad_norm=case.clip,
            layer_decay=case.layer_decay,
        ),
        micro_batch=GLOBAL_BATCH // (world.size * case.accumulation),
        accumulation=case.accumulation,
        device=torch.device("cpu"),
        world=world,
        undecayed=model.no_weight_decay_names(),
        depths=model.layer_depths(),
        average=EmaConfig(decay=EMA_DECAY, warmup=False) if case.average else None,
        stages=stages,
    )


def large(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    return ((F.interpolate(images, size=32), targets) for images, targets in batches)


def rate(step: int) -> float:
    return LR / (1 + step)


class PlainLamb:
    """LAMB (arXiv 1904.00962, algorithm 2) as it is written, a whole parameter at a time."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups, self.steps = groups, 0
        self.first: dict[Tensor, Tensor] = {}
        self.second: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for group in self.param_groups:
            for x in group["params"]:
                m = self.first.get(x, torch.zeros_like(x)) * 0.9 + 0.1 * x.grad
                v = self.second.get(x, torch.zeros_like(x)) * 0.999 + 0.001 * x.grad**2
                self.first[x], self.second[x] = m, v
                r = (m / (1 - 0.9**self.steps)) / ((v / (1 - 0.999**self.steps)).sqrt() + EPS)
                r = r + group["weight_decay"] * x
                trust = 1.0
                if group["weight_decay"] and x.norm() > 0 and r.norm() > 0:
                    trust = float(x.norm() / r.norm())
                x -= group["lr"] * trust * r


def plain_optimizer(case: Case, model: Swin) -> Any:
    undecayed, depths = model.no_weight_decay_names(), model.layer_depths()
    groups = [
        {
            "params": [value],
            "weight_decay": 0.0 if name in undecayed else WEIGHT_DECAY,
            "scale": case.layer_decay ** (max(depths.values()) - depths[name]),
            "lr": LR,
        }
        for name, value in model.named_parameters()
    ]
    return PlainLamb(groups) if case.kind == "lamb" else torch.optim.AdamW(groups, eps=EPS)


def plain_loop(case: Case, chunks: int) -> dict[str, Any]:
    """Losses, norms, weights and averages of a loop with none of our engine or DeepSpeed's.

    Under autocast the batch is cut as the ranks cut it, so that roundings fall in the same places.
    """
    model = make_model(Case(family=case.family))
    optimizer = plain_optimizer(case, model)
    averages = {name: value.detach().clone() for name, value in model.named_parameters()}
    dtype = DTYPES.get(case.precision)
    scale = LOSS_SCALE if case.precision == "fp16" else 1.0
    chunks = 1 if dtype is None else chunks
    losses, norms = [], []
    for step in range(STEPS):
        model.zero_grad()
        total = 0.0
        for images, targets in large(micro_batches(step, 0, 1, chunks)):
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), targets) / chunks
            (loss * scale).backward()  # a power of two: what the scale is matters in no bit
            total += float(loss.detach())
        for value in model.parameters():
            assert value.grad is not None
            value.grad /= scale
        norm = nn.utils.clip_grad_norm_(model.parameters(), case.clip or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group["scale"]
        optimizer.step()
        for name, value in model.named_parameters():
            averages[name].lerp_(value.detach(), 1 - (EMA_DECAY if step else 0.0))
        losses.append(total)
        norms.append(float(norm))
    weights = {name: value.detach() for name, value in model.named_parameters()}
    return {"losses": losses, "norms": norms, "weights": weights, "averages": averages}


def train(
    engine: Engine, world: World, case: Case, steps: range = range(STEPS)
) -> tuple[list[float], list[float]]:
    """Mean losses over all ranks and gradient norms of a few steps."""
    sums, norms = [], []
    for step in steps:
        mine = large(micro_batches(step, world.rank, world.size, case.accumulation))
        result = engine.train_step(mine, lr=rate(step))
        sums.append(float(result.loss_sum))
        norms.append(float(result.grad_norm))
    return [loss / GLOBAL_BATCH for loss in dist.sum_across_ranks(sums)], norms


def farthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert not ours or ours.keys() == theirs.keys()
    return max((float((ours[name] - theirs[name]).abs().max()) for name in ours), default=0.0)


def compare(world: World, case: Case) -> dict[str, Any]:
    """The largest distances between the engine and the plain loop; of weights on rank zero."""
    expected = plain_loop(case, world.size * case.accumulation)
    engine = make_engine(world, case)
    losses, norms = train(engine, world, case)
    weights = engine.full_weights()
    averages = engine.full_weights("ema") if case.average else {}
    engine.close()
    start = dict(make_model(Case(family=case.family)).named_parameters())
    return {
        "case": asdict(case),
        "loss": max(abs(a - b) for a, b in zip(losses, expected["losses"], strict=True)),
        "norm": max(abs(a / b - 1) for a, b in zip(norms, expected["norms"], strict=True)),
        "weights": farthest(weights, expected["weights"]),
        "averages": farthest(averages, expected["averages"]),
        "moved": farthest(weights, {name: value.detach() for name, value in start.items()}),
    }


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def resume(world: World, row: dict[str, Any]) -> dict[str, Any]:
    """Whether two equal runs are equal, and one taken up in the middle, to the bit."""
    case, ends = Case(**row), []
    for _ in range(2):
        engine = make_engine(world, case)
        train(engine, world, case, range(2))
        saved, state = engine.fragments(), engine.state()
        train(engine, world, case, range(2, 4))
        ends.append((engine.fragments(), engine.state()))
        engine.close()
    engine = make_engine(world, case)
    train(engine, world, case, range(7, 8))
    engine.load_fragments(lambda kind, name, start, _: saved[f"{kind}|{name}|{start}"], **state)
    train(engine, world, case, range(2, 4))
    resumed, resumed_state = engine.fragments(), engine.state()
    engine.close()
    return {
        "repeated": equal(ends[0][0], ends[1][0]),
        "resumed": equal(resumed, ends[0][0]) and resumed_state == ends[0][1],
        "apart": farthest(resumed, ends[0][0]),
        "changed": not equal(saved, resumed),
        "state": resumed_state,
    }


def overflow(world: World, stage: int) -> dict[str, Any]:
    """fp16 whose first scale is too large by far: steps are skipped until it is not."""
    case = Case(stage=stage, precision="fp16", average=True, clip=0.5)
    engine = make_engine(world, case, loss_scale=2.0**20)
    before, scales, untouched, skipped = engine.fragments(), [], [], True
    exact = dict(make_model(case).named_parameters())
    unrounded = []
    for key, value in before.items():
        kind, name, start = key.split("|")
        if kind == "master":
            first = int(start)
            whole = exact[name].detach().view(-1)
            unrounded.append(torch.equal(value, whole[first : first + len(value)]))
    while skipped and len(scales) < 20:
        step = large(micro_batches(0, world.rank, world.size, 1))
        result = engine.train_step(step, lr=rate(0))
        skipped = result.skipped
        scales.append(engine.state()["loss_scale"])
        untouched.append(equal(before, engine.fragments()))
    after, norm = engine.fragments(), float(result.grad_norm)
    engine.close()
    twin = make_engine(world, case)
    expected = twin.train_step(large(micro_batches(0, world.rank, world.size, 1)), lr=rate(0))
    same = max(float((after[key] - value).abs().max()) for key, value in twin.fragments().items())
    twin.close()
    return {
        "scales": scales,
        "untouched": untouched,
        "unrounded": bool(unrounded) and all(unrounded),
        "norm": abs(norm / float(expected.grad_norm) - 1),
        "distance": dist.gather_objects(same),
    }


def table(world: World, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [compare(world, Case(**row)) for row in rows]


def suite(
    world: World,
    rows: list[dict[str, Any]],
    resumed: list[dict[str, Any]],
    overflows: list[int],
) -> dict[str, Any]:
    """In one process: once trained with autocast, DeepSpeed keeps it marked, so fp32 is first."""
    order = ("fp32", "bf16", "fp16")
    rows = sorted(rows, key=lambda row: order.index(row.get("precision", "fp32")))
    return {
        "table": table(world, rows),
        "resumed": [resume(world, row) for row in resumed],
        "overflow": [overflow(world, stage) for stage in overflows],
    }
