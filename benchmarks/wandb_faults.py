"""What a dead or slow wandb costs a step: against the same steps without wandb, in the same run.

python benchmarks/wandb_faults.py [--rounds 7] [--steps 60] [--output benchmarks/wandb_faults.md]

A small Swin trains on one thread and records every step. In each round every variant gets a
recorder and a mirror of its own, one after the other in a random order; they are there for
some seconds before steps are timed, so that the mirror has met its server. Ratios are between
medians over the steps of the same round. The time on the clock is that of all who share the cores;
the processor's time is what the training process itself spent, so it tells on a busy machine too.
"""

import argparse
import importlib.metadata
import os
import platform
import random
import sys
import tempfile
import time
from contextlib import ExitStack, closing, redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from wandb_servers import FAULTS, FakeWandb, environment, faulty

from pretrain.config.schema import RunConfig
from pretrain.metrics import recorder as recorder_module
from pretrain.metrics.mirror.mirror import WandbMirror
from pretrain.metrics.names import METRICS
from pretrain.metrics.recorder import Recorder
from pretrain.models.build import build
from pretrain.run_directory import RunDirectory

BASELINE = "disabled"
VARIANTS = (BASELINE, "disabled again", "offline", "online", *(f"online, {one}" for one in FAULTS))
SETTLE_SECONDS = 4.0
FINISH_SECONDS = 1.0
BATCH, CLASSES = 8, 10


def config_of(mode: str) -> RunConfig:
    """A run of the small model, whose metrics go where ``mode`` says."""
    return RunConfig.model_validate(
        {
            "name": "benchmark",
            "data": {"path": "/data"},
            "model": {
                "variant": "swin_t",
                "embed_dim": 48,
                "image_size": 32,
                "window_size": 1,
                "num_classes": CLASSES,
            },
            "optim": {"lr": 0.001},
            "schedule": {"epochs": 10},
            "batch": {"global_size": BATCH, "micro_size_max": BATCH},
            "wandb": {"mode": mode},
        }
    )


class Cost(NamedTuple):
    """Seconds of one step: on the clock, of the processor, and on the clock in `Recorder.write`."""

    clock: float
    processor: float
    recording: float


class Training:
    """Steps of a small Swin on noise."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.model = build(config_of("disabled").model)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.images = torch.randn(BATCH, 3, 32, 32)
        self.labels = torch.randint(0, CLASSES, (BATCH,))

    def step(self) -> float:
        """Train one step; return the loss."""
        loss = F.cross_entropy(self.model(self.images), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def measure(training: Training, variant: str, steps: int, folder: Path) -> Cost:
    """Return what a step costs where ``variant`` says what wandb is like."""
    mode = variant.partition(",")[0].split()[0]
    fault = variant.partition(", ")[2]
    with ExitStack() as stack:
        if fault:
            port = stack.enter_context(faulty(fault)).port
        else:
            port = stack.enter_context(closing(FakeWandb())).port
        os.environ.update(environment(port))
        run = RunDirectory(folder)
        run.create(config_of(mode), "{}")
        stack.enter_context(redirect_stdout((folder / "rank.log").open("w")))
        recorder = stack.enter_context(
            Recorder(
                run,
                config_of(mode),
                rank=0,
                attempt=1,
                resume_step=0,
                total_steps=steps,
                steps_per_epoch=steps,
            )
        )
        time.sleep(SETTLE_SECONDS)
        costs = []
        for step in range(1, steps + 1):
            processor, began = time.process_time(), time.perf_counter()
            values = dict.fromkeys(METRICS, training.step())
            trained = time.perf_counter()
            recorder.write(step, values)
            ended = time.perf_counter()
            costs.append((ended - began, time.process_time() - processor, ended - trained))
    return Cost(*(median(column) for column in zip(*costs, strict=True)))


def table(found: dict[str, list[Cost]]) -> str:
    """Return the rows of Markdown: medians over rounds, and the least and greatest of ratios."""
    lines = [
        "| wandb | step ms | in recording ms | step ÷ without wandb | processor ÷ without wandb |",
        "|---|--:|--:|--:|--:|",
    ]
    for variant, rounds in found.items():
        pairs = list(zip(rounds, found[BASELINE], strict=True))
        clock = [one.clock / base.clock for one, base in pairs]
        processor = [one.processor / base.processor for one, base in pairs]
        step, recording = (median(one[part] for one in rounds) for part in (0, 2))
        lines.append(
            f"| {variant} | {1e3 * step:.1f} | {1e3 * recording:.3f} | {_spread(clock)} | "
            f"{_spread(processor)} |"
        )
    return "\n".join(lines)


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"


def main() -> None:
    """Measure and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    # The same mirror, but nobody waits half a minute for a server that will not answer.
    limited = partial(WandbMirror, finish_seconds=FINISH_SECONDS)
    recorder_module.WandbMirror = limited  # type: ignore[misc,assignment]
    training = Training()
    for _ in range(10):
        training.step()
    found: dict[str, list[Cost]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for variant in random.sample(VARIANTS, len(VARIANTS)):
                place = Path(folder) / f"{number} {variant}"
                found[variant].append(measure(training, variant, options.steps, place))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "wandb")}
    text = (
        f"{table(found)}\n\n{os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    )
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
