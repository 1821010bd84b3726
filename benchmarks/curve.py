"""Print a run's learning curve as Markdown: ``python benchmarks/curve.py RUN_DIRECTORY``."""

import json
from pathlib import Path
from statistics import median

from pretrain.errors import ConfigError, run_command

LOSSES_AVERAGED = 10
"""Training records before an evaluation whose losses are averaged."""


def main(arguments: list[str]) -> int:
    """Print one row per evaluation, then throughput and attempts."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "metrics.jsonl").is_file():
        raise ConfigError("expected one run directory, the one that holds metrics.jsonl")
    run = Path(arguments[0])
    records = _lines(run / "metrics.jsonl")
    print("| epoch | step | training loss | evaluation loss | top-1 | top-5 |")
    print("| --: | --: | --: | --: | --: | --: |")
    losses: list[float] = []
    epoch = 0.0
    for record in records:
        if "train/loss" in record:
            losses.append(record["train/loss"])
            epoch = record["train/epoch"]
        if "eval/top1_fraction" in record:
            recent = losses[-LOSSES_AVERAGED:]
            print(
                f"| {epoch:.1f} | {record['step']} | {sum(recent) / len(recent):.3f} "
                f"| {record['eval/loss']:.3f} | {record['eval/top1_fraction']:.2%} "
                f"| {record['eval/top5_fraction']:.2%} |"
            )
    rates = sorted(r["perf/images_per_second"] for r in records if "perf/images_per_second" in r)
    low, high = rates[len(rates) // 10], rates[-1 - len(rates) // 10]
    print(f"\n{median(rates):.0f} images/s (median of {len(rates)} records; ", end="")
    print(f"middle 80 %: {low:.0f} to {high:.0f})")
    for event in _lines(run / "events.jsonl"):
        if event["event"] in ("started", "resumed", "done", "stopped"):
            told = {k: v for k, v in event.items() if k not in ("time", "attempt", "event")}
            print(f"attempt {event['attempt']}: {event['event']} {told or ''}".rstrip())
    return 0


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    run_command(main)
