"""Time and memory of a training step: our engine's settings against torch's DDP in the same run.

python benchmarks/engine.py [--ranks 2] [--rounds 3] [--steps 6] [--output benchmarks/engine.md]

With GPUs it trains Swin-L at 224 pixels on 21,841 classes and sweeps the micro-batch; without, a
small Swin on CPU ranks. Every variant of a round runs in fresh processes, the variants take turns,
and ratios are between runs of the same round; medians with the least and the greatest. Images are
noise, already on the device: neither loading nor augmentation is measured.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from measurements import spread, where
from plain_training import fused_adamw, plain_step
from torch import Tensor, nn

from pretrain import dist
from pretrain.config.load import load_run
from pretrain.config.schema import RunConfig
from pretrain.engine.engine import Engine
from pretrain.engine.runtime import import_deepspeed
from pretrain.models.build import build, compile_blocks
from pretrain.models.cost import count_forward_macs
from pretrain.models.variants import shape_of
from pretrain.plan.devices import images_per_second_at_peak
from pretrain.plan.memory import GIB, memory_bytes_per_rank
from pretrain.world import World, world_from_environment

SMALL = (
    "model.variant=swin_t", "model.embed_dim=48", "model.image_size=128", "model.window_size=4",
    "model.num_classes=1000",
)  # fmt: skip
GPU_MICRO_BATCHES = (32, 64, 128, 256)
CPU_MICRO_BATCH = 8
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Variant:
    """One row: the engine under some settings, or plain torch (stage 0)."""

    stage: int
    precision: str
    recompute: str = "none"
    offload: str = "none"
    kind: str = "adamw"
    compiled: bool = False
    micro_batch: int = CPU_MICRO_BATCH

    @property
    def label(self) -> str:
        """What the table calls it."""
        parts = [f"ZeRO {self.stage}" if self.stage else "torch DDP", self.precision]
        parts += [part for part in (self.recompute, self.kind) if part not in ("none", "adamw")]
        parts += [f"offload {self.offload}"] if self.offload != "none" else []
        parts += ["compiled"] if self.compiled else []
        return ", ".join(parts)

    @property
    def baseline(self) -> "Variant":
        """Plain torch in the same precision, on as many images."""
        return Variant(0, self.precision, micro_batch=self.micro_batch)


def variants(gpu: bool) -> list[Variant]:
    """What is measured; baselines included."""
    rows = [Variant(stage, precision) for precision in ("bf16", "fp32") for stage in (0, 1, 2, 3)]
    kinds = ("selective_attention", "selective_mlp", "full", "full_offload")
    rows += [Variant(1, "bf16", recompute=kind) for kind in kinds]
    rows += [Variant(2, "bf16", offload="optimizer"), Variant(1, "bf16", kind="lamb")]
    if not gpu:
        return rows
    rows += [Variant(stage, "bf16", compiled=True) for stage in (0, 1)]
    sweep = [row for row in rows if row.precision == "bf16"]
    return [
        Variant(**{**asdict(row), "micro_batch": size})
        for size in GPU_MICRO_BATCHES
        for row in (rows if size == 64 else sweep)
    ]


def config_of(variant: Variant, gpu: bool) -> RunConfig:
    """The shipped recipe under a variant's settings."""
    settings = {
        "engine.zero_stage": variant.stage or 1,
        "engine.precision": variant.precision,
        "engine.offload": variant.offload,
        "engine.activation_checkpointing": f"[{','.join([variant.recompute] * 4)}]",
        "engine.compile": str(variant.compiled).lower(),
        "optim.kind": variant.kind,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return load_run("swin_l_22k", [*overrides, *(() if gpu else SMALL)])


def batches(config: RunConfig, variant: Variant, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise images and soft targets of one micro-batch."""
    side, classes = config.model.image_size, config.model.num_classes
    images = torch.randn(variant.micro_batch, 3, side, side, device=device)
    return images, torch.softmax(torch.randn(variant.micro_batch, classes, device=device), -1)


def engine_step(
    variant: Variant, config: RunConfig, world: World, device: torch.device
) -> Callable[[], object]:
    """Return a step of our engine."""
    model = build(config.model, config.engine.activation_checkpointing)
    if variant.compiled:
        compile_blocks(model)
    engine = Engine(
        model,
        engine=config.engine,
        optim=config.optim,
        micro_batch=variant.micro_batch,
        accumulation=1,
        device=device,
        world=world,
        undecayed=model.no_weight_decay_names(),
        depths=model.layer_depths(),
    )
    batch = batches(config, variant, device)
    return lambda: engine.train_step(iter([batch]), lr=1e-4)


def plain_ddp_step(
    variant: Variant, config: RunConfig, device: torch.device
) -> Callable[[], object]:
    """Return a step of torch's DistributedDataParallel with autocast, clipping and fused AdamW."""
    model = build(config.model).to(device)
    if variant.compiled:
        compile_blocks(model)
    batch = batches(config, variant, device)
    return plain_step(
        nn.parallel.DistributedDataParallel(model),
        fused_adamw(model),
        precision=variant.precision,
        device=device,
        next_batch=lambda: batch,
    )


def measure(variant: Variant, steps: int, gpu: bool) -> dict[str, float]:
    """Seconds of a step and peak memory of this rank. Every rank."""
    world = world_from_environment()
    device = torch.device(f"cuda:{world.local_rank}" if gpu else "cpu")
    if not gpu:
        torch.set_num_threads(1)
    dist.initialize(world, device, timeout_seconds=600)
    config = config_of(variant, gpu)
    import_deepspeed(device)  # before the memory is looked at
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step = (
        engine_step(variant, config, world, device)
        if variant.stage
        else plain_ddp_step(variant, config, device)
    )
    wall, cpu = [], []
    for _ in range(steps + WARM_UP_STEPS):
        begin, used = time.perf_counter(), time.process_time()
        step()
        if gpu:
            torch.cuda.synchronize(device)
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - used)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated(device) if gpu else after - before
    return {
        "wall_seconds": median(wall[WARM_UP_STEPS:]),
        "cpu_seconds": median(cpu[WARM_UP_STEPS:]),
        "peak_gib": dist.max_across_ranks(peak) / GIB,
    }


def run(variant: Variant, ranks: int, steps: int, gpu: bool) -> dict[str, float] | None:
    """Measure in fresh processes; None where memory was short."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, __file__, "--variant", json.dumps(asdict(variant))]
    command += ["--steps", str(steps), "--device", "cuda" if gpu else "cpu"]
    started = []
    for rank in range(ranks):
        own = {**common, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
        started.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    ends = [process.communicate() for process in started]
    if any("OutOfMemoryError" in errors for _, errors in ends):
        return None
    if any(process.returncode for process in started):
        raise SystemExit(f"{variant.label}:\n" + "\n".join(errors[-3000:] for _, errors in ends))
    return json.loads(ends[0][0])


Rounds = dict[Variant, list[dict[str, float] | None]]


def rows(rounds: Rounds, ranks: int, gpu: bool) -> Iterator[str]:
    """The table."""
    yield (
        "| variant | micro-batch | ms per step | its time ÷ DDP's | its CPU time ÷ DDP's "
        "| peak GiB | images/s |" + (" estimate GiB | MFU |" if gpu else "")
    )
    yield "|---|--:|--:|--:|--:|--:|--:|" + ("--:|--:|" if gpu else "")
    for variant, found in rounds.items():
        pairs = [(a, b) for a, b in zip(found, rounds[variant.baseline], strict=True) if a and b]
        own = [result for result in found if result]
        if not own:
            yield f"| {variant.label} | {variant.micro_batch} | out of memory |" + " |" * (
                4 + 2 * gpu
            )
            continue
        cells = [variant.label, str(variant.micro_batch)]
        cells.append(spread([1e3 * result["wall_seconds"] for result in own], 0))
        cells += [
            spread([a[key] / b[key] for a, b in pairs]) if pairs else ""
            for key in ("wall_seconds", "cpu_seconds")
        ]
        cells.append(f"{median(result['peak_gib'] for result in own):.3g}")
        rate = variant.micro_batch / median(result["wall_seconds"] for result in own)
        cells.append(f"{ranks * rate:.3g}")
        cells += of_gpu(variant, ranks, rate) if gpu else []
        yield f"| {' | '.join(cells)} |"


def of_gpu(variant: Variant, ranks: int, images_per_second: float) -> list[str]:
    """The plan's estimate in GiB, and the share of the device's peak that the model's FLOP take."""
    config = config_of(variant, gpu=True)
    shape = shape_of(config.model)
    memory = memory_bytes_per_rank(shape, config, variant.micro_batch, ranks)["memory"]
    name = torch.cuda.get_device_name(0)
    peak = images_per_second_at_peak(name, "bf16", count_forward_macs(shape))
    estimate = f"{sum(memory.values()) / GIB:.3g}" if variant.stage else ""
    return [estimate, f"{images_per_second / peak:.1%}" if peak else ""]


def main() -> int:
    """Measure and print, or measure one variant as a rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("cpu", "cuda"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.variant:
        variant = Variant(**json.loads(given.variant))
        result = measure(variant, given.steps, given.device == "cuda")
        if os.environ["RANK"] == "0":
            print(json.dumps(result))
        dist.shutdown()
        return 0
    gpu = torch.cuda.is_available()
    ranks = given.ranks or (torch.cuda.device_count() if gpu else 2)
    found: Rounds = {variant: [] for variant in variants(gpu)}
    for number in range(given.rounds):
        for variant in found:
            found[variant].append(run(variant, ranks, given.steps, gpu))
            print(f"round {number + 1}: {variant.label}: {found[variant][-1]}", file=sys.stderr)
    text = "\n".join(
        [
            f"{ranks} ranks, {given.steps} steps a run after {WARM_UP_STEPS}, {given.rounds} "
            "rounds; medians [least, greatest].",
            "",
            *rows(found, ranks, gpu),
            "",
            where(gpu),
        ]
    )
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
