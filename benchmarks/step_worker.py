"""One subject of `benchmarks/step.py` in a process of its own, which takes its turn when asked.

Reads a line of JSON for each turn and answers with one; its first line says what it built.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from plain_training import AUTOCAST, LEARNING_RATE, fused_adamw, plain_step
from step_matrix import OUR_PATHS, Cell, Subject
from step_models import NETWORKS, NotMeasurableError, count_macs
from step_turns import PARTS
from torch import Tensor, nn

from pretrain import dist
from pretrain.augment.pipeline import Augment
from pretrain.config.schema import RunConfig
from pretrain.data.batch import Batch
from pretrain.fast_paths import take_fast_paths
from pretrain.models.build import build, compile_blocks
from pretrain.models.cost import count_forward_macs, count_parameters
from pretrain.models.variants import IMAGE_CHANNELS
from pretrain.objective import engine_of, objective_of
from pretrain.plan.memory import GIB
from pretrain.step_inputs import StepInputs
from pretrain.tune.measure import kind_of
from pretrain.world import World

PRODUCT_SIDE = {"cuda": 8192, "cpu": 1024}
PRODUCTS = {"cuda": 50, "cpu": 5}
"""Matrix products of a turn."""


class PartClock:
    """Adds up the time between the beginnings and the ends of parts.

    On a GPU between events in its queue, so that nothing waits; elsewhere on the host's clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any, Any]] = []

    def _mark(self) -> Any:
        if not self._gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def around(self, part: str) -> Iterator[None]:
        """Time a part; the loss counts to the forward pass."""
        begin = self._mark()
        yield
        self._marks.append(("forward" if part == "loss" else part, begin, self._mark()))

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call; the device must be done."""
        seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for part, begin, end in self._marks:
            seconds[part] += begin.elapsed_time(end) / 1e3 if self._gpu else end - begin
        self._marks.clear()
        return seconds


class Stepping:
    """A training step on noise images, timed.

    Args:
        step: takes a step and gives a loss, on the device.
        clock: what times its parts.
        device: where it trains.
        rss_before_bytes: of the process before the network was there.
    """

    def __init__(
        self,
        step: Callable[[], Tensor],
        clock: PartClock,
        device: torch.device,
        rss_before_bytes: int,
    ) -> None:
        self._step, self._clock, self._device = step, clock, device
        self._rss_before_bytes = rss_before_bytes

    def turn(self, warm_up: int, steps: int) -> dict[str, Any]:
        """Take some steps, then some that count; means over these."""
        gpu = self._device.type == "cuda"
        for _ in range(warm_up):
            self._step()
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._clock.take()
        issue_seconds, loss = 0.0, torch.zeros(())
        began, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            issued = time.perf_counter()
            loss = self._step()
            issue_seconds += time.perf_counter() - issued
        if gpu:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - began, time.process_time() - used
        if not loss.isfinite():
            raise RuntimeError("the loss is not finite")
        peak = torch.cuda.max_memory_allocated() if gpu else rss_bytes() - self._rss_before_bytes
        parts = self._clock.take()
        if gpu:
            torch.cuda.empty_cache()  # the others' turn
        counted = max(steps, 1)
        return {
            "wall_seconds": wall / counted,
            "cpu_seconds": cpu / counted,
            "issue_seconds": issue_seconds / counted,
            "peak_gib": peak / GIB,
            "part_seconds": {part: seconds / counted for part, seconds in parts.items()},
        }


class Multiplying:
    """A product of square matrices over and over: what the device reaches in plain torch.

    Args:
        precision: of the factors.
        device: where.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self._device, self._side = device, PRODUCT_SIDE[device.type]
        dtype = AUTOCAST.get(precision, torch.float32)
        self._left, self._right, self._product = (
            torch.randn(self._side, self._side, device=device).to(dtype) for _ in range(3)
        )

    def turn(self, warm_up: int, steps: int) -> dict[str, Any]:
        """Multiply, some times before it counts; the numbers of steps are not looked at."""
        del warm_up, steps
        count = PRODUCTS[self._device.type]
        seconds = 0.0
        for _ in range(2):
            began = time.perf_counter()
            for _ in range(count):
                torch.mm(self._left, self._right, out=self._product)
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
        return {"flop_per_second": count * 2 * self._side**3 / seconds}


def rss_bytes() -> int:
    """The largest resident set that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def noise(cell: Cell, device: torch.device) -> Iterator[Batch]:
    """Yield batches as the loader gives them, the same to every subject of a cell.

    Always the same images, in page-locked memory for a GPU, with new seeds.
    """
    source = torch.Generator().manual_seed(0)
    side, size = cell.image_size, cell.micro_batch
    images = torch.randint(
        256, (size, side, side, IMAGE_CHANNELS), dtype=torch.uint8, generator=source
    )
    labels = torch.randint(cell.num_classes, (size,), generator=source)
    if device.type == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()
    ids, valid = torch.arange(size), torch.ones(size, dtype=torch.bool)
    while True:
        seeds = torch.randint(2**62, (size,), generator=source)
        yield Batch(images.permute(0, 3, 1, 2), labels, ids, seeds, valid, ())


def our_step(
    cell: Cell, subject: Subject, device: torch.device, clock: PartClock
) -> tuple[Callable[[], Tensor], dict[str, int], list[str]]:
    """Return a step of our engine, built and given its inputs as `pretrain.train` does."""
    compiled = f"engine.compile={str(subject.compiled).lower()}"
    config = cell.config([*OUR_PATHS[subject.path], compiled])
    dist.initialize(World(), device, timeout_seconds=600)
    objective, paths = take_fast_paths(objective_of(config), config, device)
    engine = engine_of(
        objective,
        config,
        micro_batch=cell.micro_batch,
        accumulation=1,
        device=device,
        world=World(),
        around=clock.around,
    )
    plan = SimpleNamespace(accumulation=1, micro_batch=cell.micro_batch, total_steps=sys.maxsize)
    job: Any = SimpleNamespace(config=config, plan=plan, world=World())
    recorder: Any = None  # draws nothing after the first step
    inputs = StepInputs(
        job, objective.augment, noise(cell, device), device, 1, [], recorder, clock.around
    )
    steps = count(1)

    def step() -> Tensor:
        made = inputs.of_step(next(steps))
        return engine.train_step(made, LEARNING_RATE, meanwhile=inputs.prepare).loss_sum

    return step, reference(cell), list(paths.remarks)


def augmented(
    config: RunConfig, cell: Cell, device: torch.device, clock: PartClock
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return what gives the images and targets that ours is given, made when asked for."""
    augment = Augment(config.augment, num_classes=cell.num_classes, seed=config.seed)
    stream, steps = noise(cell, device), count(1)

    def next_batch() -> tuple[Tensor, Tensor]:
        batch = next(stream)
        with clock.around("augment"):
            return augment(
                batch.images.to(device, non_blocking=True),
                batch.labels.to(device, non_blocking=True),
                batch.seeds,
                step=next(steps),
                first_group=0,
            )

    return next_batch


def their_step(
    cell: Cell, subject: Subject, device: torch.device, clock: PartClock
) -> tuple[Callable[[], Tensor], dict[str, int], list[str]]:
    """Return a plain step of a network of the same shape.

    Raises:
        NotMeasurableError: the library cannot take part.
    """
    config = cell.config()
    facts = reference(cell)
    if subject.library == "plain":
        network: nn.Module = build(config.model, config.engine.activation_checkpointing)
    else:
        network = NETWORKS[subject.library](cell.shape, cell.recompute)
        facts["parameters"] = sum(parameter.numel() for parameter in network.parameters())
        facts["forward_macs"] = count_macs(network, cell.image_size)
    network.to(device)
    if subject.compiled and subject.library == "plain":
        compile_blocks(network)
    elif subject.compiled:
        network.compile()
    step = plain_step(
        network,
        fused_adamw(network),
        precision=cell.precision,
        device=device,
        next_batch=augmented(config, cell, device, clock),
        around=clock.around,
    )
    return step, facts, []


def reference(cell: Cell) -> dict[str, int]:
    """What our network has and does, which the plan counts from its shape."""
    shape = cell.shape
    return {"parameters": count_parameters(shape), "forward_macs": count_forward_macs(shape)}


def make(
    given: dict[str, Any], device: torch.device
) -> tuple[Stepping | Multiplying, dict[str, int], list[str]]:
    """Return what takes turns, and what is said of it.

    Raises:
        NotMeasurableError: it cannot take part.
    """
    if "product" in given:
        return Multiplying(given["product"], device), {}, []
    cell, subject = Cell(**given["cell"]), Subject(**given["subject"])
    torch.manual_seed(0)
    before, clock = rss_bytes(), PartClock(device)
    build_step = our_step if subject.library == "engine" else their_step
    step, facts, remarks = build_step(cell, subject, device, clock)
    return Stepping(step, clock, device, before), facts, remarks


def serve(given: dict[str, Any], answers: Any) -> int:
    """Build, then take a turn for each line of standard input."""
    device = torch.device("cuda:0" if given["device"] == "cuda" else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)  # others' work then holds up no thread that waits for another
    try:
        subject, facts, remarks = make(given, device)
        print(json.dumps({"facts": facts, "remarks": remarks}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(subject.turn(**json.loads(line))), file=answers, flush=True)
    except NotMeasurableError as error:
        print(json.dumps({"end": str(error)}), file=answers, flush=True)
    except (RuntimeError, MemoryError) as error:
        if kind_of(error) != "memory":
            raise
        print(json.dumps({"end": f"out of memory{_at_most(device)}"}), file=answers, flush=True)
    dist.shutdown()
    return 0


def _at_most(device: torch.device) -> str:
    """How much memory the waiting processes of the others left to this one."""
    if device.type != "cuda":
        return ""
    free, _ = torch.cuda.mem_get_info()
    return f" ({(free + torch.cuda.memory_reserved()) / GIB:.0f} GiB were left to it)"


if __name__ == "__main__":
    # Libraries talk on standard output; answers go where nobody else writes.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.exit(serve(json.loads(sys.argv[1]), answers))
