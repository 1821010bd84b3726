"""What the ranks of `test_waits_ranks` do: train as a run does, and watch for waits."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from device_waits import DeviceWaits
from torch import Tensor

from pretrain import dist, step_inputs, train
from pretrain.config.load import load_run
from pretrain.data.batch import Batch
from pretrain.engine import engine as engine_module
from pretrain.engine.engine import Engine
from pretrain.job import Job
from pretrain.objective import Objective
from pretrain.plan.derive import make_plan
from pretrain.plan.resources import Resources
from pretrain.preflight import require_manifest
from pretrain.run_directory import RunDirectory
from pretrain.world import World

CONFIG = """\
data: {{path: {shards}, workers_per_rank: 0}}
model: {{variant: swin_t, embed_dim: 16, depths: [2, 1, 1, 1], heads: [1, 2, 4, 8],
         image_size: 32, window_size: 4, num_classes: 4, drop_path: 0.2}}
optim: {{lr: 1.0e-3, layer_decay: 0.9}}
schedule: {{epochs: 1, warmup_epochs: 0.5}}
batch: {{global_size: 16, micro_size_max: 4}}
augment: {{mix_group: 4, mix_probability: 0.8, erase_probability: 0.5}}
ema: {{decay: 0.9}}
eval: {{resize: 36}}
log: {{every_steps: 3}}
guard: {{compare_every_steps: 4}}
wandb: {{mode: disabled}}
engine: {{threads_per_rank: 1, precision: bf16}}
cluster: {{device: {device}}}
"""
MASKED = (
    "masking={patch_size: 16, ratio: 0.6}", "model.image_size=64", "data.eval_split=null",
    "augment.randaugment=null", "augment.mix_probability=0.0", "augment.erase_probability=0.0",
    "augment.label_smoothing=0.0", "engine.precision=fp32", "engine.zero_stage=2",
    "optim.clip_grad_norm=0.0",
    "engine.activation_checkpointing=[full,selective_mlp,selective_attention,none]",
)  # fmt: skip
MAY_WAIT = ("record", "measure_accuracy", "save", "compare_ranks", "finish")
"""Functions of the loop for which it waits: none is called in every step."""


def job_of(world: World, folder: Path, shards: str, device: str, *overrides: str) -> Job:
    """A run of six steps, made by rank zero."""
    path = folder / "waits.yaml"
    if world.rank == 0:
        folder.mkdir(parents=True)
        path.write_text(CONFIG.format(shards=shards, device=device))
    dist.barrier()
    config = load_run(str(path), [f"runs_dir={folder}", *overrides])
    manifest = require_manifest(config)
    plan = make_plan(config, manifest, Resources(device, 1, world.size), free_disk_bytes=2**40)
    run = RunDirectory(folder / "waits")
    if world.rank == 0:
        run.create(config, plan.to_json())
        run.attempt_dir(1).mkdir(parents=True)
    dist.barrier()
    return Job(run, config, plan, manifest, world, attempt=1)


def allowed_in(stack: ExitStack, allowing: Callable[..., Any]) -> None:
    """Let what may wait do so: records, evaluations, saves, comparisons, and the first picture."""
    for name in MAY_WAIT:
        stack.enter_context(mock.patch.object(train, name, allowing(getattr(train, name))))
    picture = allowing(step_inputs.draw_first_batch)
    stack.enter_context(mock.patch.object(step_inputs, "draw_first_batch", picture))
    digest = allowing(Engine.weights_digest)
    stack.enter_context(mock.patch.object(Engine, "weights_digest", digest))


def watched(world: World, folder: Path, shards: str, *overrides: str) -> dict[str, list[str]]:
    """Train a run, and say what would have waited in its steps, and where it may."""
    waits = DeviceWaits()
    connect, copied = train.connect, Batch.copied

    def connected(*arguments: Any) -> train.Parts:
        parts = connect(*arguments)
        zero = parts.engine._zero
        waits.mark(*zero.module.parameters(), *zero.module.buffers())
        waits.mark(*parts.engine.live_fragments().values(), *zero.optimizer.bit16_groups_flat)
        waits.watch()
        return parts

    def pinned(batch: Batch, **named: Any) -> Batch:
        copy = copied(batch, **named)
        waits.stage(copy.images, copy.labels, copy.seeds)
        return copy

    job = job_of(world, folder, shards, "cpu", *overrides)
    with ExitStack() as stack:
        allowed_in(stack, waits.may_wait)
        stack.enter_context(mock.patch.object(train, "connect", connected))
        stack.enter_context(mock.patch.object(Batch, "copied", pinned))
        stack.enter_context(waits)
        assert train.train(job) == "done"
    return {"found": sorted(set(waits.found)), "allowed": sorted(set(waits.allowed))}


def asking(objective_of: Callable[..., Objective]) -> Callable[..., Objective]:
    """The same objective, whose loss is printed, as one does."""

    def made(*arguments: Any) -> Objective:
        objective = objective_of(*arguments)

        def loss(outputs: Tensor, targets: Any) -> Tensor:
            losses = objective.loss(outputs, targets)
            print(losses.mean().item())
            return losses

        return replace(objective, loss=loss)

    return made


def suite(world: World, folder: str, shards: str) -> dict[str, Any]:
    root = Path(folder)
    # In this order: DeepSpeed keeps a process that once trained with autocast marked as such.
    found = {
        "masked": watched(world, root / "masked", shards, *MASKED),
        "classes": watched(world, root / "classes", shards),
    }
    with (
        mock.patch.object(train, "objective_of", asking(train.objective_of)),
        mock.patch.object(engine_module, "skips_on_device", return_value=False),
    ):
        found["asking"] = watched(world, root / "asking", shards, "data.eval_split=null")
    return found


def on_gpu(_: World, folder: str, shards: str) -> str:
    """Train on a GPU whose driver refuses to wait in a step from the third on."""
    dist.shutdown()
    world, device = World(), torch.device("cuda", 0)
    dist.initialize(world, device, timeout_seconds=60)
    steps = 0

    def allowing(function: Callable[..., Any]) -> Callable[..., Any]:
        def allowed(*arguments: Any, **named: Any) -> Any:
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("default")
            try:
                return function(*arguments, **named)
            finally:
                torch.cuda.set_sync_debug_mode(before)

        return allowed

    real_rate = train.rate

    def rate(job: Job, step: int) -> float:
        nonlocal steps
        steps += 1
        if steps == 3:  # kernels are chosen and memory is taken in the first
            torch.cuda.set_sync_debug_mode("error")
        return real_rate(job, step)

    job = job_of(world, Path(folder), shards, "cuda")
    with ExitStack() as stack:
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        allowed_in(stack, allowing)
        stack.enter_context(mock.patch.object(train, "rate", rate))
        return train.train(job)
