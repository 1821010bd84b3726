"""How well a run foretells its end, against elapsed time over the share of steps done.

python benchmarks/eta.py [--rounds 2] [--cifar10 SHARDS]

Each case is a real run of two CPU ranks, of the demo's first part on its synthetic images, or of
the config cifar10 where its shards are given. progress.json is read while it trains. When 5, 10,
25 and 50 % of the steps of an attempt are done, its ``eta_seconds`` and the alternative (time since
the attempt began, times steps to come over steps done) are compared with what was really left
until the last event. An error is a share of what was left. ``unevenness`` is the 90th over
the 10th percentile of the records' step times: about 1 on a machine that does nothing else.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).parent.parent
PERCENT = (5, 10, 25, 50)
CASES: dict[str, list[str]] = {
    "demo": [],
    "evaluation every epoch, with an average": ["eval.every_epochs=1", "ema.decay=0.99"],
    "saves every 20 steps, waited for": [
        "checkpoint.background=false",
        "checkpoint.every_steps=20",
    ],
    "two epochs": ["schedule.epochs=2", "schedule.warmup_epochs=0.5", "eval.every_epochs=1"],
}
RESUMED = "begun by two ranks, resumed by one"
CIFAR10 = "cifar10, two epochs"


def main() -> None:
    """Run every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cifar10", metavar="SHARDS", help="also train the config cifar10")
    options = parser.parse_args()
    found: dict[str, list[list[tuple[float, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        made = [sys.executable, "-m", "data_tools.synthetic", data]
        subprocess.run(made, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        for number in range(options.rounds):
            runs = Path(folder) / f"round_{number}"
            for name, said in cases(runs, data / "22k", options.cifar10):
                found.setdefault(name, []).append(errors(said))
                print(f"{number} {name}: {found[name][-1]}", file=sys.stderr)
    print_table(found, options.rounds)


def cases(
    runs: Path, data: Path, cifar10: str | None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield every case's name and what its run said."""
    demo = ["demo_pretrain", f"data.path={data}"]
    for number, (name, fields) in enumerate(CASES.items()):
        yield name, run_case(runs, number, [*demo, *fields])
    yield RESUMED, run_resumed(runs, demo)
    if cifar10 is not None:
        short = ["schedule.epochs=2", "schedule.warmup_epochs=0.5"]
        yield (
            CIFAR10,
            run_case(runs, 99, ["cifar10", f"data.path={Path(cifar10).absolute()}", *short]),
        )


def run_case(runs: Path, number: int, given: list[str]) -> list[dict[str, Any]]:
    """Train to the end and return what progress.json said meanwhile."""
    run = runs / f"case_{number}"
    return follow(run, start(["--config", given[0], f"runs_dir={runs}", *given[1:]], run, ranks=2))


def run_resumed(runs: Path, given: list[str]) -> list[dict[str, Any]]:
    """Stop a run after a third of its steps, and let half as many ranks go on."""
    run = runs / "resumed"
    arguments = ["--config", given[0], f"runs_dir={runs}", *given[1:]]
    process = start(arguments, run, ranks=2)
    follow(run, process, until=0.33)
    return follow(run, start(arguments, run, ranks=1))


def start(arguments: list[str], run: Path, *, ranks: int) -> subprocess.Popen[bytes]:
    """Start training."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    command += ["--standalone", "-m", "pretrain", *arguments, "--name", run.name]
    return subprocess.Popen(
        [*command, "wandb.mode=disabled", "engine.threads_per_rank=1"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def follow(
    run: Path, process: subprocess.Popen[bytes], *, until: float = 2.0
) -> list[dict[str, Any]]:
    """Read progress.json whenever it changes; the last entry says when the attempt began and ended.

    Args:
        run: its directory.
        process: torchrun.
        until: share of the steps after which it is told to save and stop.
    """
    before = events(run, "started")
    said: list[dict[str, Any]] = []
    while process.poll() is None:
        try:
            progress = json.loads((run / "progress.json").read_text())
        except (OSError, ValueError):
            progress = {}
        if len(events(run, "started")) > len(before) and said[-1:] != [progress]:
            said.append(progress)
            if progress["step"] >= until * progress["total_steps"]:
                until = 2.0
                process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    if process.returncode != 0 and not events(run, "stop_requested"):
        raise SystemExit(f"{run}: torchrun ended with {process.returncode}")
    began = events(run, "started")[-1]
    ended = (events(run, "done") or events(run, "stopped"))[-1]
    ends = {"began": began["time"], "ended": ended["time"], "first": began["step"]}
    return [*said, ends | {"unevenness": unevenness(run)}]


def unevenness(run: Path) -> float:
    """Return how much the step time of a run's records varied."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    times = [record["perf/step_seconds"] for record in records if "perf/step_seconds" in record]
    tenths = quantiles(times, n=10)
    return tenths[-1] / tenths[0]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return a run's events of one kind."""
    path = run / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def errors(said: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return this program's error and the alternative's, after each share of the steps.

    Last comes the unevenness, twice.
    """
    *said, ends = said
    found = []
    for percent in PERCENT:
        total = said[-1]["total_steps"]
        due = ends["first"] + (total - ends["first"]) * percent / 100
        now = next(
            one for one in said if one["step"] >= due and one["eta_seconds"] is not None
        )  # fmt: skip
        left, done = ends["ended"] - now["time"], now["step"] - ends["first"]
        naive = (now["time"] - ends["began"]) * (total - now["step"]) / done
        found.append((now["eta_seconds"] / left - 1, naive / left - 1))
    return [*found, (ends["unevenness"],) * 2]


def print_table(found: dict[str, list[list[tuple[float, float]]]], rounds: int) -> None:
    """Print each case's median error, with the least and the greatest."""
    heads = [f"{percent} %" for percent in PERCENT]
    print("| run | estimate | " + " | ".join(f"after {head}" for head in heads) + " | unevenness |")
    print("|---|---|" + "--:|" * (len(heads) + 1))
    for name, of_rounds in found.items():
        for which, label in enumerate(("**eta_seconds**", "elapsed ÷ done")):
            columns = [_spread([round_[at][which] for round_ in of_rounds]) for at in range(4)]
            uneven = median(round_[-1][which] for round_ in of_rounds)
            print(f"| {name} | {label} | " + " | ".join(columns) + f" | {uneven:.2f} |")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed")}
    print(
        f"\n{rounds} rounds, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    )


def _spread(values: list[float]) -> str:
    return f"{median(values):+.1%} [{min(values):+.1%}, {max(values):+.1%}]"


if __name__ == "__main__":
    main()
