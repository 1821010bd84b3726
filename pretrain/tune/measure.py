"""The program that measures one candidate: real model, optimizer and augmentation on noise.

``python -m pretrain.tune.measure ORDER`` takes one JSON `Order` and writes JSON lines to standard
output: what it is doing, and at last what it found or why it could not.
"""

import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TextIO

import torch

from pretrain import dist
from pretrain.config.engine import EngineConfig
from pretrain.config.load import read_run, vary
from pretrain.config.schema import RunConfig
from pretrain.data.batch import Batch
from pretrain.data.children import serve
from pretrain.engine.engine import Engine
from pretrain.engine.step_result import StepResult
from pretrain.errors import EngineError, PretrainError
from pretrain.fast_paths import FastPaths, take_fast_paths
from pretrain.job import Job, share_of_cores
from pretrain.metrics.meter import peak_memory_gib
from pretrain.objective import Objective, engine_of, objective_of
from pretrain.plan.derive import make_plan
from pretrain.plan.memory import GIB
from pretrain.plan.resources import Resources, cpu_name
from pretrain.run_directory import RunDirectory
from pretrain.step_inputs import StepInputs
from pretrain.tune.child import OUT_OF_MEMORY, Order
from pretrain.tune.trials import Kind
from pretrain.world import World

WARM_UP_STEPS = 2
"""After the first step, which compiles and allocates."""
STRETCHES = 7
"""Steps are timed in so many, and the device is waited for after each."""
LR = 1e-5
MANY_IMAGES = 2**40
"""So that no time suffices for all steps."""


def main(arguments: list[str]) -> int:
    """Measure, and report whatever comes of it; return 0 if there is a rate."""
    order = Order(**json.loads(arguments[0]))
    serve(order.parent)
    reports = _take_standard_output()

    def report(**what: Any) -> None:
        reports.write(json.dumps(what) + "\n")
        reports.flush()

    try:
        if order.config is None:
            report(found=describe(torch.device(order.device), order.ranks_per_node))
        else:
            report(found=measure(order, read_run(Path(order.config), order.overrides), report))
    except Exception as error:  # noqa: BLE001 - any is a row of the table
        report(failed=kind_of(error), reason=_first_line(error))
        return 1
    return 0


def describe(device: torch.device, ranks_per_node: int) -> dict[str, Any]:
    """Name of the device, and the memory in bytes that a rank finds on it."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return {"name": torch.cuda.get_device_name(device), "memory_bytes": free_bytes}
    return {"name": cpu_name(), "memory_bytes": _available_bytes() // ranks_per_node}


def _available_bytes() -> int:
    """What the kernel would give to a new process, the page cache included."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kib) * 1024


def measure(order: Order, config: RunConfig, report: Callable[..., None]) -> dict[str, Any]:
    """Take steps as a run would and time them.

    Returns:
        The fields of `pretrain.tune.trials.Measured` that this process knows.

    Raises:
        EngineError: the loss is not finite, or a kernel that was asked for does not work here.
    """
    job = _job(order, config)
    device = torch.device(job.device)
    cores = len(os.sched_getaffinity(0))
    shared = World(local_size=order.ranks_per_node)
    torch.set_num_threads(config.engine.threads_per_rank or share_of_cores(cores, shared, {}))
    dist.initialize(job.world, device, config.engine.collective_timeout_seconds)
    torch.manual_seed(config.seed)
    objective, paths = take_fast_paths(objective_of(config), config, device)
    check_taken(config.engine, paths)
    engine = engine_of(
        objective,
        config,
        micro_batch=job.plan.micro_batch,
        accumulation=job.plan.accumulation,
        device=device,
        world=job.world,
    )
    report(doing="first step")
    step = _stepper(engine, objective, job)
    loss = float(step().loss_sum)
    started = time.time() - order.time
    if not math.isfinite(loss):
        raise EngineError(f"the loss of its first step is {loss}")
    report(doing="warm-up")
    seconds = [_seconds(step, 1) for _ in range(WARM_UP_STEPS)][-1]
    report(doing="measuring")
    together = max(1, round(order.measured_seconds / STRETCHES / seconds))
    each = [_seconds(step, together) / together for _ in range(STRETCHES)]
    lower, middle, upper = quantiles(each, n=4, method="inclusive")
    return {
        "images_per_second": job.plan.global_batch / median(each),
        "spread_fraction": (upper - lower) / 2 / middle,
        "start_seconds": started,
        **_memory(device),
    }


def check_taken(engine: EngineConfig, paths: FastPaths) -> None:
    """Refuse a candidate that would be measured without the kernels it is named after.

    Raises:
        EngineError: with the reasons why they are not taken.
    """
    for field in ("attention", "layer_norm", "cross_entropy"):
        if getattr(engine, field) == "fused" != getattr(paths, field):
            raise EngineError("; ".join(paths.remarks))


def _job(order: Order, config: RunConfig) -> Job:
    """A rank alone, whose global batch is its own. It has no data, and no directory of its own."""
    alone = vary(config, [f"data.expected_train_samples={MANY_IMAGES}"], "config")
    plan = make_plan(alone, None, Resources(order.device, 1, 1), free_disk_bytes=0)
    nothing: Any = None
    return Job(RunDirectory(Path.cwd()), config, plan, manifest=nothing, world=World(), attempt=1)


def _stepper(engine: Engine, objective: Objective, job: Job) -> Callable[[], StepResult]:
    """Return a step of training, its inputs made as a run makes them."""
    device = torch.device(job.device)
    noise = _noise(job, pinned=device.type == "cuda")
    nobody: Any = None  # is told: a picture is drawn of step 0 only
    steps = itertools.count(1)
    inputs = StepInputs(job, objective.augment, noise, device, 1, [], nobody)

    def step() -> StepResult:
        return engine.train_step(inputs.of_step(next(steps)), LR, meanwhile=inputs.prepare)

    return step


def _noise(job: Job, *, pinned: bool) -> Iterator[Batch]:
    """Yield batches as the loader's: the same noise again and again, under fresh seeds."""
    count, model = job.plan.micro_batch, job.config.model
    shape = (count, model.image_size, model.image_size, 3)
    batch = Batch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2),
        labels=torch.randint(0, model.num_classes, (count,)),
        sample_ids=torch.arange(count),
        seeds=torch.zeros(count, dtype=torch.int64),
        valid=torch.ones(count, dtype=torch.bool),
        bad=(),
    ).copied(pinned=pinned)
    while True:
        yield replace(batch, seeds=torch.randint(0, 2**62, (count,)))


def _seconds(step: Callable[[], object], steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _memory(device: torch.device) -> dict[str, int]:
    peak_bytes = round(peak_memory_gib(device) * GIB)
    on_gpu = device.type == "cuda"
    held_bytes = torch.cuda.max_memory_reserved(device) if on_gpu else peak_bytes
    return {"peak_bytes": peak_bytes, "held_bytes": held_bytes}


def kind_of(error: Exception) -> Kind:
    """Sort an error: what is refused, what is too large, what does not compile, what is broken."""
    text = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text for words in OUT_OF_MEMORY
    ):
        return "memory"
    if isinstance(error, PretrainError):
        return "refused"
    chain = [error, error.__cause__, error.__context__]
    modules = [type(link).__module__ for link in chain if link is not None]
    if any(module.startswith(("torch._dynamo", "torch._inductor")) for module in modules):
        return "compile"
    return "crash"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _take_standard_output() -> TextIO:
    """Return what was standard output; whatever else prints goes to standard error from now on."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return reports


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
