"""Runs as training leaves them, of any size, made by hand."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretrain.config.schema import RunConfig
from pretrain.metrics.names import of_stages
from pretrain.run_directory import RunDirectory

START = 1_790_000_000.0
GLOBAL_BATCH = 4096
STEP_SECONDS = 0.55


def make_run(path: Path, **overrides: Any) -> RunDirectory:
    """A run that was created and not started."""
    values = {
        "name": path.name,
        "data": {"path": "/data"},
        "model": {"variant": "swin_l", "image_size": 192, "window_size": 12, "num_classes": 21841},
        "optim": {"lr": 0.001},
        "schedule": {"epochs": 90},
        "batch": {"global_size": GLOBAL_BATCH, "micro_size_max": 64},
        "ema": {"decay": 0.9999},
        "log": {"every_steps": 10},
    }
    run = RunDirectory(path)
    config = RunConfig.model_validate(values | overrides)
    run.create(config, json.dumps(PLAN))
    environment = ENVIRONMENT | {"command": ["launch/slurm.py", "--config", path.name]}
    run.environment_path.write_text(json.dumps(environment))
    return run


def fill(
    run: RunDirectory,
    *,
    steps: int = 2000,
    attempts: int = 3,
    evaluations: int = 9,
    total_steps: int | None = None,
    state: str = "training",
    speed: float = 1.0,
    probe: bool = True,
) -> RunDirectory:
    """Record a run of Swin-L on 64 devices: everything a run may record, every ten steps."""
    rng = np.random.default_rng(len(run.path.name))
    total = total_steps or steps
    lives = np.linspace(0, steps, attempts + 1).astype(int)[1:-1]
    evaluated = set((np.linspace(0, steps, evaluations + 1)[1:] // 10 * 10).astype(int).tolist())
    lines: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        attempt = int(np.searchsorted(lives, step)) + 1
        stamp = {"step": step, "attempt": attempt}
        stamp["time"] = START + step * STEP_SECONDS / speed + 600 * (attempt - 1)
        lines.append(stamp | numbers(step, total, attempt, rng, speed))
        if step in evaluated:
            measured = accuracies(step, total, speed, probe=probe)
            lines.append(stamp | {"time": stamp["time"] + 4} | measured)
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = lines[-1]
    progress = {
        "state": state,
        "step": steps,
        "total_steps": total,
        "epoch": steps / 3466,
        "attempt": attempts,
        "eta_seconds": (total - steps) * STEP_SECONDS / speed,
    }
    run.progress_path.write_text(json.dumps(progress))
    run.events_path.write_text(_lines(events(lines, attempts, last["time"])))
    run.attempts_path.write_text(_lines(ledger(lines, attempts)))
    return run


def numbers(
    step: int, total: int, attempt: int, rng: np.random.Generator, speed: float = 1.0
) -> dict[str, float]:
    """What one record of the training holds."""
    part, noise = step / total, float(rng.normal())
    seconds = 10 * STEP_SECONDS / speed
    rate = GLOBAL_BATCH / STEP_SECONDS * speed * (1 + 0.02 * noise)
    values = {
        "train/loss": 2.4 + 7.0 * math.exp(-6 * part) + 0.06 * noise,
        "train/accuracy_fraction": 0.44 * (1 - math.exp(-4 * part)) + 0.004 * noise,
        "train/grad_norm": 1.5 + math.exp(rng.normal() - 9 * part),
        "train/learning_rate": 1e-3 * min(1.0, part / 0.05) * (1 + math.cos(math.pi * part)) / 2,
        "train/weight_decay": 0.05,
        "train/loss_scale": 2.0 ** (16 - int(3 * part)),
        "train/skipped_steps": float(rng.random() < 0.01),
        "train/epoch": step / 3466,
        "data/samples_consumed": step * GLOBAL_BATCH,
        "data/bad_samples": float(rng.random() < 0.03),
        "perf/images_per_second": rate,
        "perf/images_per_second_per_device": rate / 64,
        "perf/flop_utilisation_fraction": 0.41 + 0.01 * noise,
        "perf/step_seconds": seconds / 10,
        "perf/data_wait_fraction": abs(0.02 + 0.01 * noise),
        "perf/data_wait_seconds": abs(0.02 + 0.01 * noise) * seconds,
        "perf/communication_seconds": 0.12 * seconds,
        "perf/compute_seconds": 0.85 * seconds,
        "perf/evaluation_seconds": 40.0 if step % 220 == 10 and step > 10 else 0.0,
        "perf/save_seconds": 1.5 if step % 100 == 10 and step > 10 else 0.0,
        "perf/save_wait_seconds": 0.0,
        "perf/save_write_seconds": 20.0 if step % 100 == 10 and step > 10 else 0.0,
        "memory/peak_gib": 61.3,
        "run/attempt": attempt,
    }
    for stage, names in enumerate(
        zip(
            of_stages("train/update_ratio"),
            of_stages("train/activation_rms"),
            of_stages("train/activation_max"),
            strict=True,
        )
    ):
        ratio, rms, largest = names
        values[ratio] = values["train/learning_rate"] * (0.5 + 0.3 * stage) + 1e-7
        values[rms] = (1.2 + stage) * (1 + part) * (1 + 0.01 * noise)
        values[largest] = (20.0 + 60 * stage**2) * (1 + 2 * part)
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def accuracies(
    step: int, total: int, speed: float = 1.0, *, probe: bool = True
) -> dict[str, float]:
    """What one evaluation holds."""
    part = step / total
    values: dict[str, float] = {}
    for prefix, top in (("eval/", 0.38), ("eval/ema_", 0.41), *PROBES[: 2 * probe]):
        right = top * (1 - math.exp(-5 * part * speed))
        values[f"{prefix}loss"] = 9.0 - 9 * right
        values[f"{prefix}top1_fraction"] = right
        values[f"{prefix}top5_fraction"] = 1 - (1 - right) ** 2
        values[f"{prefix}images"] = 50_000
    return values


PROBES = (("eval/probe_", 0.79), ("eval/probe_ema_", 0.81))


def events(lines: Sequence[dict[str, Any]], attempts: int, last: float) -> list[dict[str, Any]]:
    """Starts and ends of attempts, bad samples, and a few alerts."""
    found: list[dict[str, Any]] = []
    for number in range(1, attempts + 1):
        own = [line["time"] for line in lines if line["attempt"] == number] or [last]
        stamp = {"attempt": number}
        found.append({"time": own[0] - 60, **stamp, "event": "attempt_started", "job": "4711"})
        found.append({"time": own[0] - 30, **stamp, "event": "started", "ranks": 64})
        if number < attempts:
            reason = "rank 17 on node-05 was killed by SIGKILL"
            found.append({"time": own[-1] + 9, **stamp, "event": "attempt_ended", "reason": reason})
    for line in lines:
        if line.get("data/bad_samples"):
            stamp = {"time": line["time"], "attempt": line["attempt"], "event": "bad_sample"}
            where = {"shard": "train_00017.tar", "key": f"n0{line['step']}", "reason": "truncated"}
            found.append({**stamp, "step": line["step"], **where})
    middle = lines[len(lines) // 2]
    stamp = {"attempt": middle["attempt"], "event": "alert", "step": middle["step"]}
    text = "4.1 % of the last 200 steps were not applied: a gradient was not finite"
    found.append({"time": middle["time"], **stamp, "about": "non_finite_steps", "text": text})
    text = "31 % of the training time was spent waiting for data over the last 1,000 steps"
    found.append({"time": middle["time"] + 5, **stamp, "about": "slow_data", "text": text})
    return sorted(found, key=lambda event: event["time"])


def ledger(lines: Sequence[dict[str, Any]], attempts: int) -> list[dict[str, Any]]:
    """What the supervisor notes."""
    found: list[dict[str, Any]] = []
    for number in range(1, attempts + 1):
        own = [line["time"] for line in lines if line["attempt"] == number] or [START]
        found.append({"event": "start", "attempt": number, "time": own[0] - 60, "nodes": ["n1"]})
        if number < attempts:
            end = {"event": "end", "attempt": number, "time": own[-1] + 10}
            reason = "rank 17 on node-05 was killed by SIGKILL in a step"
            found.append({**end, "outcome": "crashed", "cause": "rank_died", "reason": reason})
    return found


def add_pictures(run: RunDirectory, *, classes: int = 12, examples: int = 4) -> None:
    """The grid of the first step, and an evaluation by class with pictures of mistakes."""
    rng = np.random.default_rng(0)
    grid = rng.integers(0, 255, (40, 80, 3)).astype(np.uint8)
    Image.fromarray(grid).resize((960, 480), Image.Resampling.BICUBIC).save(run.augmentation_path)
    run.examples_dir.mkdir()
    worst = []
    for number in range(classes):
        known = NAMES[number % len(NAMES)]
        shown = []
        for example in range(examples):
            file = run.examples_dir / f"{number}_{example}.jpg"
            tint = rng.integers(0, 255, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(tint).resize((96, 96), Image.Resampling.BICUBIC).save(file)
            other = NAMES[(number + example + 1) % len(NAMES)]
            shown.append({"file": f"examples/{file.name}", "taken_for": _class(other)})
        taken = [
            _class(NAMES[(number + more) % len(NAMES)]) | {"images": 9 - more} for more in (1, 2)
        ]
        accuracy = {"images": 50, "top1_fraction": 0.02 * number, "top5_fraction": 0.06 * number}
        worst.append(_class(known) | accuracy | {"taken_for": taken, "examples": shown})
    confused = [
        {
            "label": _class(NAMES[number % len(NAMES)]),
            "taken_for": _class(NAMES[(number + 1) % len(NAMES)]),
            "images": 40 - number,
            "of_images": 50,
        }
        for number in range(20)
    ]
    told = {"step": 2000, "split": "validation", "edition": "fall11", "weights": "ema"}
    told |= {"of": "eval", "classes": 21841, "images": 218410, "top1_fraction": 0.4012}
    run.by_class_path.write_text(json.dumps({**told, "worst": worst, "confused": confused}))


def add_checkpoint(run: RunDirectory, step: int, size_bytes: int) -> None:
    """A checkpoint's directory with a file that takes no room."""
    path = run.checkpoints_dir / f"step_{step:08d}"
    path.mkdir(parents=True)
    with (path / "rank_00000.safetensors").open("wb") as file:
        file.truncate(size_bytes)


def _class(known: tuple[str, str]) -> dict[str, Any]:
    return {"id": known[0], "name": known[1]}


def _lines(values: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


NAMES = (
    ("n04355933", "sunglass"),
    ("n03710637", "maillot"),
    ("n04152593", "screen, CRT screen"),
    ("n02123159", "tiger cat"),
    ("n03866082", "overskirt"),
    ("n04286575", "spotlight, spot"),
    ("n04560804", "water jug"),
    ("n03692522", "loupe, jeweler's loupe"),
    ("n02107908", "Appenzeller"),
    ("n09332890", "lakeside, lakeshore"),
    ("n13037406", "a very long name of a class that nobody could fit into one line of a card"),
    ("n04347754", "submarine, pigboat, sub, U-boat"),
)

PLAN = {
    "edition": "fall11",
    "num_classes": 21841,
    "train_samples": 14_197_122,
    "device": "cuda",
    "nodes": 8,
    "ranks_per_node": 8,
    "global_batch": GLOBAL_BATCH,
    "total_steps": 311_940,
    "parameters": 228_600_000,
    "memory": {"parameters": 914_000_000, "activations": 52_000_000_000},
    "checkpoint_bytes": 3_657_600_000,
    "checkpoints_kept": 4,
    "free_disk_bytes": 9_000_000_000_000,
    "cost": {
        "hours": 48.6,
        "gpu_hours": 3110.4,
        "exaflop": 265.0,
        "images_per_second": 7300.0,
        "assumption": "each GPU sustains 109 TFLOP/s (35 % of an A100's dense bf16 peak)",
    },
}

ENVIRONMENT = {
    "time": "2026-09-21T12:00:00+0000",
    "host": "login1",
    "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
    "python": "3.12.4",
    "executable": "/opt/venv/bin/python",
    "slurm": "slurm 24.05.2",
    "packages": {"torch": "2.8.0", "deepspeed": "0.19.8", "numpy": "2.3.0", "wandb": "0.31.0"},
    "git_commit": "2b56e51d4c1a",
    "git_changed_files": 0,
}
