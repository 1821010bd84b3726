"""The verbs that only show: ``list`` and ``status``."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.look_after.standing import Standing, attempt_rows, disk_bytes, standing_of
from launch.look_after.tables import age, aligned, duration, one_line, print_table, size
from launch.status import Queue
from launch.supervise.decide import NEXT_IN_WORDS
from pretrain.lookup import runs_below
from pretrain.run_directory import RunDirectory

HEADINGS = (
    "name", "state", "step", "total", "time left", "images/s", "job", "attempts", "checkpoint",
)  # fmt: skip
NODES_SHOWN = 8
RIGHT = set(HEADINGS) - {"name", "state", "job"}


def list_runs(runs_dir: Path, *, active: bool, as_json: bool) -> int:
    """Print every run below a directory, the one launched last first.

    Args:
        runs_dir: holds the run directories.
        active: only those that a job has.
        as_json: for programs.

    Raises:
        LaunchError: the directory cannot be read.
    """
    runs, others = runs_below(runs_dir)
    queue = Queue()
    queue.ask_together(runs)
    now = time.time()
    found = [standing_of(run, queue, now=now) for run in runs]
    found.sort(key=lambda standing: standing.launched_time or 0.0, reverse=True)
    shown = [standing for standing in found if standing.is_active or not active]
    if as_json:
        content = {"runs_dir": str(runs_dir.absolute()), "not_runs": others}
        print(json.dumps({**content, "runs": [asdict(standing) for standing in shown]}, indent=1))
        return 0
    if shown:
        print_table(HEADINGS, [_row(standing) for standing in shown], right=RIGHT)
    else:
        print(f"no {'active ' if active else ''}runs in {runs_dir.absolute()}")
    for standing in shown:
        for problem in standing.problems:
            print(one_line(f"{standing.name}: {problem}"))
        if standing.state == "unknown" and not standing.problems:
            print(one_line(f"{standing.name}: {standing.detail}"))
    if others and not active:
        print(one_line(f"no runs: {', '.join(others)}"))
    return 0


def show_status(run: RunDirectory, *, as_json: bool) -> int:
    """Print all that is known of one run.

    Args:
        run: its directory.
        as_json: for programs.
    """
    queue = Queue()
    queue.ask_together([run])
    standing = standing_of(run, queue, now=time.time())
    attempts = attempt_rows(run)
    disk = disk_bytes(run.path)
    if as_json:
        content = {**asdict(standing), "disk_bytes": disk, "attempts_made": attempts}
        print(json.dumps(content, indent=1))
        return 0
    facts = [*_facts(standing), ("disk", size(disk)), ("directory", standing.path)]
    doing = f", {standing.doing}" if standing.doing else ""
    said = "" if standing.detail in (standing.state, standing.doing) else f": {standing.detail}"
    print(one_line(f"{standing.name}: {standing.state}{doing}{said}"))
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(one_line(f"  {name.ljust(width)}  {value}"))
    if attempts:
        print("attempts:")
        for line in aligned([_attempt_cells(row) for row in attempts], [True, *[False] * 5]):
            print(one_line(f"  {line}"))
    for problem in standing.problems:
        print(one_line(f"wrong: {problem}"))
    return 0


def _row(standing: Standing) -> list[str]:
    doing = standing.doing or ""
    state = standing.state if doing in ("", "training") else doing
    return [
        standing.name,
        state,
        _count(standing.step),
        _count(standing.total_steps),
        duration(standing.eta_seconds),
        _count(standing.images_per_second),
        standing.job or "-",
        str(standing.attempts),
        age(standing.checkpoint_age_seconds),
    ]


def _facts(standing: Standing) -> list[tuple[str, str]]:
    facts = [("step", _progress(standing))]
    if standing.is_active:
        ends = ""
        if standing.eta_seconds is not None:
            end = time.localtime(time.time() + standing.eta_seconds)
            ends = f" (until {time.strftime('%a %H:%M', end)}; evaluations and saves counted)"
        facts.append(("time left", f"{duration(standing.eta_seconds)}{ends}"))
        facts.append(("last sign", f"{age(standing.progress_age_seconds)} ago"))
    if standing.images_per_second is not None:
        facts.append(("speed", _speed(standing)))
    if standing.loss is not None:
        facts.append(("loss", f"{standing.loss:.4g}"))
    for name, value in (
        ("accuracy", standing.accuracy_fraction),
        ("top-1", standing.eval_top1_fraction),
        ("probe top-1", standing.probe_top1_fraction),
    ):
        if value is not None:
            facts.append((name, f"{100 * value:.2f} %"))
    facts.append(("checkpoint", _checkpoint(standing)))
    if standing.job is not None:
        facts.append(("job", f"{standing.job} ({standing.executor})"))
    if standing.nodes:
        more = len(standing.nodes) - NODES_SHOWN
        names = ", ".join(standing.nodes[:NODES_SHOWN])
        facts.append(("nodes", f"{names} and {more} more" if more > 0 else names))
    return facts


def _progress(standing: Standing) -> str:
    if standing.step is None:
        return f"0 of {_count(standing.total_steps)}"
    text = f"{standing.step:,} of {_count(standing.total_steps)}"
    if standing.total_steps:
        text += f" ({100 * standing.step / standing.total_steps:.1f} %)"
    if standing.epoch is not None:
        of = "" if standing.epochs is None else f" of {standing.epochs:g}"
        text += f", epoch {standing.epoch:.2f}{of}"
    return text


def _speed(standing: Standing) -> str:
    text = f"{standing.images_per_second:,.0f} images/s"
    if standing.images_per_second_per_device is not None:
        text += f", {standing.images_per_second_per_device:,.0f} of each device"
    if standing.data_wait_fraction is not None:
        text += f"; {100 * standing.data_wait_fraction:.1f} % of the time waiting for data"
    return text


def _checkpoint(standing: Standing) -> str:
    if standing.checkpoint_step is None:
        text = "none"
    else:
        text = f"step {standing.checkpoint_step:,}, {age(standing.checkpoint_age_seconds)} ago"
    if not standing.unsaved_steps:
        return text
    seconds = standing.unsaved_seconds
    worth = "" if seconds is None else f", {duration(seconds)} of training,"
    where = "at risk" if standing.is_active else "beyond it, to be done again"
    return f"{text}; {standing.unsaved_steps:,} steps{worth} {where}"


def _attempt_cells(row: dict[str, Any]) -> list[str]:
    before, after = row["checkpoint_step_before"], row["checkpoint_step_after"]
    began = time.strftime("%d %b %H:%M", time.localtime(row["start_time"]))
    took = "" if row["end_time"] is None else duration(row["end_time"] - row["start_time"])
    lost = f"{row['lost_steps']:,} steps lost" if row["lost_steps"] else ""
    follows = NEXT_IN_WORDS[row["next"]] if row["next"] else ""
    return [
        str(row["attempt"]),
        began,
        took,
        row["cause"] or row["outcome"] or "no end",
        f"step {before or 0:,} to {'?' if after is None else f'{after:,}'}",
        "; ".join(part for part in (row["reason"], lost, follows) if part),
    ]


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
