"""What recording costs a training step, against the same steps without it, in one process.

python benchmarks/metrics_overhead.py [--rounds 30] [--batch 2] [--output FILE.md]

Swin-T at 224 pixels on one CPU rank, noise images. A round is three steps of one engine: without
any recording; with what every step adds; and with what the last step before a record adds, and the
record written. The order is drawn anew in each round, and ratios are within rounds; medians with
the quartiles.
"""

import argparse
import math
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

import torch

from pretrain import dist
from pretrain.config.load import load_run
from pretrain.config.schema import RunConfig
from pretrain.engine.classification import hits
from pretrain.engine.engine import Engine
from pretrain.engine.step_result import Sample, StepResult
from pretrain.metrics.activations import Activations, Looked
from pretrain.metrics.clock import Clock
from pretrain.metrics.forecast import Forecast
from pretrain.metrics.meter import Meter, peak_memory_gib
from pretrain.metrics.recorder import Recorder
from pretrain.models.build import build
from pretrain.run_directory import RunDirectory
from pretrain.world import World

EVERY_STEPS = 10
WARM_UP_ROUNDS = 2
CPU = torch.device("cpu")


class Recorded:
    """An engine with all that records it, as `pretrain.train` joins them."""

    def __init__(self, config: RunConfig, folder: Path, batch: int) -> None:
        model = build(config.model)
        self.batch = (
            torch.randn(batch, 3, config.model.image_size, config.model.image_size),
            torch.softmax(torch.randn(batch, config.model.num_classes), -1),
        )
        self.engine = Engine(
            model,
            engine=config.engine,
            optim=config.optim,
            micro_batch=batch,
            accumulation=1,
            device=CPU,
            world=World(),
            undecayed=model.no_weight_decay_names(),
            hits=hits,
            stages=model.parameter_stages(),
        )
        self.activations = Activations(model.layers)
        with torch.no_grad():
            self.maps = model.eval().encode(model.patch_embed(self.batch[0]))
        model.train()
        self.meter = Meter()
        self.applied = torch.tensor(True)
        forecast = Forecast(
            total_steps=10**6,
            global_batch=batch,
            evaluated=[],
            save_every_steps=10**5,
            saves_evaluated=False,
            saves_waited_for=False,
            save_bytes=0,
        )
        self.clock = Clock(global_batch=batch, forecast=forecast)
        run = RunDirectory(folder / "run")
        run.create(config, "{}")
        self.recorder = Recorder(
            run,
            config,
            rank=0,
            attempt=1,
            resume_step=0,
            total_steps=10**6,
            steps_per_epoch=1000,
        )
        self.recorder.eta_seconds = self.clock.eta_seconds
        self.done = 0

    def bare(self) -> None:
        """Train on a step and record nothing."""
        self.engine._hits = None  # what a config without recording would have given
        self.engine.train_step(iter([self.batch]), lr=1e-4)
        self.engine._hits = hits

    def counted(self) -> None:
        """Train on a step between two records."""
        self._step(sampled=False)

    def written(self) -> None:
        """Train on the last step before a record, and write it."""
        result = self._step(sampled=True)
        interval = self.meter.read(self.activations.taken())
        assert result.sample is not None
        assert result.sample.communication_seconds is not None
        values = interval.values | self.clock.read(result.sample.communication_seconds())
        values["memory/peak_gib"] = peak_memory_gib(CPU)
        self.recorder.write(self.done, values)

    def _step(self, *, sampled: bool) -> StepResult:
        self.done += 1
        stream = self.clock.waiting([self.batch])
        with self.clock.phase("step"), self.activations.watched(sampled):
            result = self.engine.train_step(stream, lr=1e-4, sampled=sampled)
        self.meter.add(result)
        self.recorder.progress(self.done, "training")
        return result

    def own_parts(self) -> None:
        """Do what recording adds to ten steps, apart from them, on outputs of the same sizes."""
        logits, targets = self.batch[1], self.batch[1]
        for _ in range(EVERY_STEPS):
            self.done += 1
            hit = hits(logits, targets).sum().float()
            with self.clock.phase("step"):
                self.meter.add(StepResult(targets.sum(), len(targets), 1.0, self.applied, hit))
            self.recorder.progress(self.done, "training")
        self.engine._updates.before()
        squares = self.engine._updates.after()
        looked = Looked()
        for output in self.maps:
            looked.norms.append(torch.linalg.vector_norm(output))
            looked.maxima.append(torch.linalg.vector_norm(output, math.inf))
            looked.elements.append(output.numel())
        sample = Sample(squares, None)
        self.done += 1
        result = StepResult(targets.sum(), len(targets), 1.0, self.applied, sample=sample)
        self.meter.add(result)
        values = self.meter.read(looked).values | self.clock.read(0.0)
        values["memory/peak_gib"] = peak_memory_gib(CPU)
        self.recorder.write(self.done, values)


def seconds_of(step: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds of a step."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(config: RunConfig, rounds: int, batch: int) -> list[dict[str, tuple[float, float]]]:
    """Seconds of each kind of step, by round."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        recorded = Recorded(config, Path(folder), batch)
        kinds = {kind: getattr(recorded, kind) for kind in ("bare", "counted", "written")}
        order = list(kinds)
        for number in range(WARM_UP_ROUNDS + rounds):
            random.shuffle(order)
            seconds = {kind: seconds_of(kinds[kind]) for kind in order}
            seconds["own"] = seconds_of(recorded.own_parts)
            if number >= WARM_UP_ROUNDS:
                found.append(seconds)
        recorded.recorder.close()
        recorded.engine.close()
    return found


def spread(values: list[float], form: str = "{:.2%}") -> str:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4)
    return f"{form.format(median(values))} [{form.format(low)}, {form.format(high)}]"


def table(found: list[dict[str, tuple[float, float]]]) -> list[str]:
    """The cost of recording as shares of a step without it."""
    lines = [
        "| | wall time | CPU time |",
        "|---|--:|--:|",
    ]
    shares: dict[str, list[list[float]]] = {}
    for which in (0, 1):
        ratios = {
            kind: [one[kind][which] / one["bare"][which] - 1 for one in found]
            for kind in ("counted", "written")
        }
        pairs = zip(ratios["counted"], ratios["written"], strict=True)
        mean = [((EVERY_STEPS - 1) * one + last) / EVERY_STEPS for one, last in pairs]
        for label, values in (
            ("a step between records", ratios["counted"]),
            ("the last step before a record, and the record", ratios["written"]),
            (f"**mean with a record every {EVERY_STEPS} steps**", mean),
        ):
            shares.setdefault(label, []).append(values)
    lines += [
        f"| {label} | {' | '.join(spread(values) for values in columns)} |"
        for label, columns in shares.items()
    ]
    own = [
        spread([one["own"][which] / one["bare"][which] / EVERY_STEPS for one in found], "{:.3%}")
        for which in (0, 1)
    ]
    lines.append(
        f"| **its own work of {EVERY_STEPS} steps and a record, done apart** | {' | '.join(own)} |"
    )
    seconds = [spread([one["bare"][which] for one in found], "{:.3f}") for which in (0, 1)]
    return [*lines, f"| a step without recording, s | {' | '.join(seconds)} |"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    dist.initialize(World(), CPU, timeout_seconds=60)
    overrides = ("wandb.mode=disabled", "log.report_seconds=0", "engine.precision=fp32")
    config = load_run("swin_t_1k", list(overrides))
    found = measure(config, given.rounds, given.batch)
    dist.shutdown()
    text = "\n".join(
        [
            f"{given.rounds} rounds, batches of {given.batch}; share of a step without recording, "
            "medians [quartiles].",
            "",
            *table(found),
            "",
            f"Measured {time.strftime('%Y-%m-%d')}; Python {platform.python_version()}, "
            f"torch {torch.__version__}, DeepSpeed {version('deepspeed')}.",
        ]
    )
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
