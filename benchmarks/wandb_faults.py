"""What a dead or slow wandb costs a step: against the same steps without wandb, in the same run.

python benchmarks/wandb_faults.py [--rounds 7] [--steps 60] [--output benchmarks/wandb_faults.md]

A small Swin trains on one thread and records every step. In each round every variant gets a
recorder and a mirror of its own, one after the other in a random order; they are there for
some seconds before steps are timed, so that the mirror has met its server. The ratio is between
medians of step times of the same round.
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
                "image_size": 64,
                "window_size": 2,
                "num_classes": CLASSES,
            },
            "optim": {"lr": 0.001},
            "schedule": {"epochs": 10},
            "batch": {"global_size": BATCH, "micro_size_max": BATCH},
            "wandb": {"mode": mode},
        }
    )


class Training:
    """Steps of a small Swin on noise."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.model = build(config_of("disabled").model)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.images = torch.randn(BATCH, 3, 64, 64)
        self.labels = torch.randint(0, CLASSES, (BATCH,))

    def step(self) -> float:
        """Train one step; return the loss."""
        loss = F.cross_entropy(self.model(self.images), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def measure(training: Training, variant: str, steps: int, folder: Path) -> tuple[float, float]:
    """Return the median seconds of a step, and of the recording in it."""
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
        whole, recording = [], []
        for step in range(1, steps + 1):
            began = time.perf_counter()
            values = dict.fromkeys(METRICS, training.step())
            trained = time.perf_counter()
            recorder.write(step, values)
            ended = time.perf_counter()
            whole.append(ended - began)
            recording.append(ended - trained)
    return median(whole), median(recording)


def table(found: dict[str, list[tuple[float, float]]]) -> str:
    """Return the rows of Markdown: medians over rounds, least and greatest of ratios."""
    lines = [
        "| wandb | step ms | recording ms | step ÷ that without wandb |",
        "|---|--:|--:|--:|",
    ]
    base = [whole for whole, _ in found[BASELINE]]
    for variant, rounds in found.items():
        whole, recording = ([one[part] for one in rounds] for part in (0, 1))
        ratios = [a / b for a, b in zip(whole, base, strict=True)]
        lines.append(
            f"| {variant} | {1e3 * median(whole):.1f} | {1e3 * median(recording):.3f} | "
            f"{median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}] |"
        )
    return "\n".join(lines)


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
    found: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
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
