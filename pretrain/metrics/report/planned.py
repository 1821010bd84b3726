"""What was planned against what came of it, and how to do it again."""

import os
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from pretrain.metrics.console import duration
from pretrain.metrics.report.elements import GIB, escape, is_number, note, short, size, table
from pretrain.metrics.report.facts import Facts

_ENDED = ("done", "stopped")
_NOT_COMPARED = ("packages",)


def plan_and_actual(facts: Facts) -> str:
    """Hours, speed, memory and disk, planned and found; only what both sides know of."""
    plan = facts.plan
    count = ranks(plan)
    rows = [
        row
        for row in (
            _hours_row(facts),
            _gpu_hours_row(facts, count),
            _rate_row(facts),
            _memory_row(facts),
            *_disk_rows(facts),
        )
        if row is not None
    ]
    cost = plan.get("cost")
    assumed = cost.get("assumption") if isinstance(cost, Mapping) else None
    said = note(f"The plan assumed: {escape(str(assumed))}.") if assumed and rows else ""
    return table(("", "planned", "actual", "ratio"), rows, kind="numbers") + said


Row = tuple[str, str, str, str]


def _row(name: str, planned: float, actual: float, unit: str = "") -> Row:
    def text(value: float) -> str:
        if unit == "hours":
            return short(value) if planned >= 1 else duration(3600 * value)
        return size(value) if unit == "bytes" else short(value)

    ratio = f"{actual / planned:.2f}" if planned > 0 else ""
    return name, text(planned), text(actual), ratio


def ranks(plan: Mapping[str, Any]) -> int:
    """How many there are by the plan; 0 where it does not say."""
    nodes, per_node = plan.get("nodes"), plan.get("ranks_per_node")
    return nodes * per_node if isinstance(nodes, int) and isinstance(per_node, int) else 0


def _cost(facts: Facts, name: str) -> float | None:
    cost = facts.plan.get("cost")
    value = cost.get(name) if isinstance(cost, Mapping) else None
    return value if is_number(value) and value > 0 else None


def expected_hours(facts: Facts) -> float | None:
    """Hours of the whole run: those it took, or those so far and what is left by its own word."""
    spent, left = facts.seconds, facts.progress.get("eta_seconds")
    if not spent:
        return None
    if facts.state in _ENDED:
        return spent / 3600
    return (spent + left) / 3600 if is_number(left) else None


def _hours_row(facts: Facts) -> Row | None:
    planned, actual = _cost(facts, "hours"), expected_hours(facts)
    if planned is None or actual is None:
        return None
    name = "hours" if facts.state in _ENDED else "hours, with what is left by now"
    return _row(name if planned >= 1 else name.replace("hours", "time"), planned, actual, "hours")


def _gpu_hours_row(facts: Facts, count: int) -> Row | None:
    planned, actual = _cost(facts, "gpu_hours"), expected_hours(facts)
    if planned is None or actual is None or not count:
        return None
    return _row("GPU-hours", planned, actual * count)


def _rate_row(facts: Facts) -> Row | None:
    planned, rates = _cost(facts, "images_per_second"), facts.series.get("perf/images_per_second")
    if planned is None or rates is None:
        return None
    return _row("images per second", planned, float(np.median(rates.values)))


def _memory_row(facts: Facts) -> Row | None:
    memory, peak = facts.plan.get("memory"), facts.series.get("memory/peak_gib")
    if not isinstance(memory, Mapping) or peak is None:
        return None
    planned = float(sum(part for part in memory.values() if is_number(part)))
    name = (
        "memory of a rank" if facts.plan.get("device") == "cuda" else "memory of a rank's process"
    )
    return _row(name, planned, float(peak.values.max()) * GIB, "bytes")


def _disk_rows(facts: Facts) -> list[Row]:
    planned, kept = facts.plan.get("checkpoint_bytes"), facts.plan.get("checkpoints_kept")
    sizes = checkpoint_sizes(facts)
    if not is_number(planned) or not sizes:
        return []
    rows = [_row("newest checkpoint", planned, sizes[max(sizes)], "bytes")]
    if is_number(kept):
        name = f"checkpoints, {len(sizes)} of {kept}"
        rows.append(_row(name, planned * kept, sum(sizes.values()), "bytes"))
    return rows


def checkpoint_sizes(facts: Facts) -> dict[str, int]:
    """Bytes of every checkpoint by the name of its directory."""
    sizes: dict[str, int] = {}
    try:
        entries = [entry for entry in os.scandir(facts.run.checkpoints_dir) if entry.is_dir()]
        for entry in entries:
            if entry.name.startswith("step_") and entry.name[5:].isdigit():
                files = os.scandir(entry.path)
                sizes[entry.name] = sum(file.stat().st_size for file in files if file.is_file())
    except OSError:  # one that is being deleted, too
        pass
    return sizes


def environment(facts: Facts) -> str:
    """Where the run was launched, with which versions."""
    told = {k: v for k, v in facts.environment.items() if k not in _NOT_COMPARED and k != "command"}
    rows = [
        (name.replace("_", " "), str(value)) for name, value in told.items() if value is not None
    ]
    packages = facts.environment.get("packages")
    if isinstance(packages, Mapping):
        rows.append(("packages", ", ".join(f"{name} {packages[name]}" for name in packages)))
    return table(("", ""), rows)


def commands(facts: Facts) -> str:
    """What to type to have the same again."""
    told = facts.environment.get("command")
    run, commit = facts.run, facts.environment.get("git_commit")
    lines = []
    if isinstance(told, list):
        if isinstance(commit, str):
            changed = facts.environment.get("git_changed_files")
            more = f", where {changed} files were changed" if changed else ""
            lines.append(f"# as it was launched, from commit {commit}{more}")
        else:
            lines.append("# as it was launched")
        lines.append(shlex.join(str(word) for word in told))
        lines.append("")
    lines.append("# anew, with the run's own copy of the source and its resolved config")
    config, name = shlex.quote(str(run.config_path)), shlex.quote(f"{run.path.name}-again")
    again = f"python -m launch.slurm --config {config} --name {name}"
    lines.append(f"cd {shlex.quote(str(run.code_path))} && {again}")
    lines += ["", "# this page, from the record as it is then"]
    lines.append(f"python -m pretrain.metrics report {shlex.quote(str(run.path))}")
    return "\n".join(lines)
