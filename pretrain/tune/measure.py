"""The program that measures one candidate: real model, optimizer and augmentation on noise.

``python -m pretrain.tune.measure ORDER`` takes one JSON `Order` and writes JSON lines to standard
output: what it is doing, and at last what it found or why it could not.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TextIO

import torch

from pretrain import dist
from pretrain.config.load import read_run
from pretrain.config.schema import RunConfig
from pretrain.data.children import serve
from pretrain.engine.engine import Engine, Values
from pretrain.engine.step_result import StepResult
from pretrain.errors import EngineError, PretrainError
from pretrain.job import share_of_cores
from pretrain.metrics.meter import peak_memory_gib
from pretrain.models.build import compile_blocks
from pretrain.objective import Objective, engine_of, objective_of
from pretrain.plan.memory import GIB
from pretrain.plan.resources import cpu_name
from pretrain.preview.compose import first_group
from pretrain.tune.child import OUT_OF_MEMORY, Order
from pretrain.tune.trials import Kind
from pretrain.world import World

WARM_UP_STEPS = 2
"""After the first step, which compiles and allocates."""
STRETCHES = 7
"""Steps are timed in so many, and the device is waited for after each."""
LR = 1e-5


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
        EngineError: the loss is not finite.
    """
    device = torch.device(order.device)
    world = World()
    cores = len(os.sched_getaffinity(0))
    shared = World(local_size=order.ranks_per_node)
    torch.set_num_threads(config.engine.threads_per_rank or share_of_cores(cores, shared, {}))
    dist.initialize(world, device, config.engine.collective_timeout_seconds)
    torch.manual_seed(config.seed)
    objective = objective_of(config)
    if config.engine.compile:
        compile_blocks(objective.model)
    micro_batch = config.batch.micro_size_max
    engine = engine_of(
        objective,
        config,
        micro_batch=micro_batch,
        accumulation=order.accumulation,
        device=device,
        world=world,
    )
    report(doing="first step")
    step = _stepper(engine, objective, config, order.accumulation, device)
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
        "images_per_second": micro_batch * order.accumulation / median(each),
        "spread_fraction": (upper - lower) / 2 / middle,
        "start_seconds": started,
        **_memory(device),
    }


def _stepper(
    engine: Engine,
    objective: Objective,
    config: RunConfig,
    accumulation: int,
    device: torch.device,
) -> Callable[[], StepResult]:
    """Return a step of training.

    Each takes the same raw noise on the device, augmented anew from fresh seeds.
    """
    size, side = config.batch.micro_size_max, config.model.image_size
    raw = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8).to(device)
    images = raw.permute(0, 3, 1, 2)  # in memory as the loader's
    labels = torch.randint(0, config.model.num_classes, (size,)).to(device)
    steps_done = 0

    def micro_batches() -> Iterator[tuple[Values, Values]]:
        for number in range(accumulation):
            yield objective.augment(
                images,
                labels,
                torch.randint(0, 2**62, (size,)),
                step=steps_done,
                first_group=first_group(config.augment, number, size),
            )

    def step() -> StepResult:
        nonlocal steps_done
        steps_done += 1
        return engine.train_step(micro_batches(), LR)

    return step


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
