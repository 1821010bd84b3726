"""Several runs on one page: their curves on shared axes, their results, and what differs."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pretrain.errors import LaunchError
from pretrain.metrics.console import duration
from pretrain.metrics.report.elements import escape, note, percent, section, short, table
from pretrain.metrics.report.facts import Facts, Series, config_of, read_facts
from pretrain.metrics.report.headline import best
from pretrain.metrics.report.page import page
from pretrain.metrics.report.planned import ranks
from pretrain.run_directory import RunDirectory

Axis = Literal["step", "samples", "hours"]
WIDTH_OF_LOGS = 160

CURVES = {
    "Training loss": "train/loss",
    "Evaluation loss": "eval/loss",
    "Top-1": "eval/top1_fraction",
    "Top-5": "eval/top5_fraction",
    "Top-1 of the average": "eval/ema_top1_fraction",
    "Top-5 of the average": "eval/ema_top5_fraction",
    "Probe, top-1": "eval/probe_top1_fraction",
    "Probe, top-1 of the average": "eval/probe_ema_top1_fraction",
    "Training accuracy, mixed targets": "train/accuracy_fraction",
    "Learning rate": "train/learning_rate",
    "Gradient norm before clipping": "train/grad_norm",
    "Images per second": "perf/images_per_second",
    "FLOP utilisation": "perf/flop_utilisation_fraction",
    "Time spent waiting for data": "perf/data_wait_fraction",
    "Peak memory, GiB": "memory/peak_gib",
}
"""What is overlaid, by title."""
_FROM_ZERO = ("learning_rate", "images_per_second", "data_wait", "utilisation", "peak_gib")
_OWN_TO_EACH = ("name", "runs_dir")
_NOT_COMPARED = ("free_disk_bytes", "time", "command")
"""Of plan and environment: what differs between any two runs and means nothing."""

Differences = list[tuple[str, list[str]]]


def read_runs(runs: Sequence[RunDirectory]) -> list[Facts]:
    """Read the runs that are to be compared.

    Raises:
        LaunchError: fewer than two, one given twice, or one without a config.
    """
    if len(runs) < 2:
        raise LaunchError(f"compare: expected two runs or more, got {len(runs)}")
    seen: set[str] = set()
    for run in runs:
        place = str(run.path.resolve())
        if place in seen:
            raise LaunchError(f"RUN {run.path.name}: given twice; name each run once")
        seen.add(place)
        if not run.exists:
            raise LaunchError(f"RUN {run.path}: expected a run directory, found no config.yaml")
    return [read_facts(run) for run in runs]


def labels(facts: Sequence[Facts]) -> list[str]:
    """Names of the runs; with the directory above where two have the same."""
    names = [run.name for run in facts]
    return [
        f"{run.run.path.parent.name}/{name}" if names.count(name) > 1 else name
        for run, name in zip(facts, names, strict=True)
    ]


def results(facts: Sequence[Facts]) -> Differences:
    """What came of each run: a name, and a text for each run; nothing that no run has."""
    rows: dict[str, list[str]] = {
        "state": [run.state for run in facts],
        "steps": [_steps(run) for run in facts],
        "epochs": [_text(run.progress.get("epoch"), ".2f") for run in facts],
    }
    for title, prefix in (
        ("top-1", "eval/"),
        ("top-1 of the average", "eval/ema_"),
        ("probe top-1", "eval/probe_"),
        ("probe top-1 of the average", "eval/probe_ema_"),
    ):
        found = [best(run, prefix) for run in facts]
        rows[f"{title}, newest"] = [percent(one[0]) if one else "" for one in found]
        rows[f"{title}, best"] = [f"{one[2]:.2%} at {one[1]:,}" if one else "" for one in found]
    for title, name in (("training loss", "train/loss"), ("evaluation loss", "eval/loss")):
        rows[title] = [_last(run, name) for run in facts]
    rows |= {
        "wall time": [duration(run.seconds) if run.lives else "" for run in facts],
        "GPU-hours": [_gpu_hours(run) for run in facts],
        "images/s, median": [_median(run, "perf/images_per_second") for run in facts],
        "images/s of a device": [
            _median(run, "perf/images_per_second_per_device") for run in facts
        ],
        "FLOP utilisation": [_median(run, "perf/flop_utilisation_fraction", True) for run in facts],
        "peak memory, GiB": [_largest(run, "memory/peak_gib") for run in facts],
        "attempts": [str(len(run.lives) or "") for run in facts],
    }
    return [(name, texts) for name, texts in rows.items() if any(texts)]


def config_differences(facts: Sequence[Facts]) -> Differences:
    """Fields of the configs that are not the same in all runs; a missing one reads ``-``.

    Raises:
        LaunchError: a config is damaged.
    """
    return _differing([_config_of(run) for run in facts])


def surrounding_differences(facts: Sequence[Facts]) -> Differences:
    """The same of the plans and of the machines and versions that the runs were launched with."""
    return _differing(
        [
            {f"plan {key}": value for key, value in _flat(run.plan).items()}
            | _flat(run.environment)
            for run in facts
        ]
    )


def compare_html(facts: Sequence[Facts], by: Axis) -> str:
    """The page: curves over ``by``, results, and differences; UTF-8 HTML without references."""
    names = labels(facts)
    parts = [
        ("Results", _table(names, results(facts))),
        ("Curves", _curves(facts, names, by)),
        ("Differences of the configs", _table(names, config_differences(facts))),
        ("Differences of plans and environments", _table(names, surrounding_differences(facts))),
    ]
    same = "<p>There are none.</p>"
    body = [
        section(title, content or (same if "Differences" in title else "<p>Nothing yet.</p>"))
        for title, content in parts
    ]
    title = f"{len(facts)} runs compared"
    return page(title, "", title, [title for title, _ in parts], body)


def print_tables(facts: Sequence[Facts]) -> None:
    """Print results and differences on standard output; texts fold where it is narrow."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OF_LOGS)
    plain = bool(os.environ.get("NO_COLOR"))  # rich itself would still embolden
    for title, rows in (
        ("Results", results(facts)),
        ("Differences of the configs", config_differences(facts)),
        ("Differences of plans and environments", surrounding_differences(facts)),
    ):
        console.print(Text(title, "" if plain else "bold"))
        shown = Table(box=None, pad_edge=False, header_style="", padding=(0, 3, 0, 0))
        for name in ("", *labels(facts)):
            shown.add_column(Text(name), overflow="fold")
        for name, texts in rows:
            shown.add_row(*map(Text, (name, *texts)))
        console.print(shown if rows else Text("none"), Text(""))


def _table(names: Sequence[str], rows: Differences) -> str:
    return table(("", *names), [(name, *texts) for name, texts in rows], kind="compared")


def _curves(facts: Sequence[Facts], names: Sequence[str], by: Axis) -> str:
    from pretrain.metrics.report.curves import Chart, Line, Marks, figure

    figures = []
    for title, name in CURVES.items():
        lines = [
            Line(label, x, run.series[name].values, dots=name.startswith("eval/"))
            for label, run in zip(names, facts, strict=True)
            if name in run.series and (x := _places(run, run.series[name], by)) is not None
        ]
        if not lines:
            continue
        chart = Chart(
            title,
            tuple(lines),
            percent=name.endswith("_fraction"),
            from_zero=any(part in name for part in _FROM_ZERO),
            log_if_wide="grad_norm" in name,
            axis=by,
            colours=tuple(names.index(line.label) for line in lines),
        )
        figures.append(figure(chart, Marks(max(float(line.x[-1]) for line in lines))))
    if not figures:
        return ""
    missing = [label for label, run in zip(names, facts, strict=True) if not run.records]
    said = f"Nothing recorded yet: {', '.join(map(escape, missing))}." if missing else ""
    return f'<div class="curves">{"".join(figures)}</div>{note(said)}'


def _places(run: Facts, series: Series, by: Axis) -> np.ndarray | None:
    """Where the values of a series lie on the axis; None where the run does not tell."""
    if by == "step":
        return series.steps
    if by == "hours":
        return np.interp(series.steps, run.hours.steps, run.hours.values)
    seen = run.series.get("data/samples_consumed")
    if seen is not None:
        # A run's batch is the same throughout, so that samples grow as steps do.
        return series.steps * (seen.last / float(seen.steps[-1]))
    batch = run.plan.get("global_batch")
    return series.steps * batch if isinstance(batch, int) else None


def _config_of(run: Facts) -> dict[str, Any]:
    """The fields of a config by dotted name; of any version of this program."""
    values = config_of(run.run)
    if values is None:
        raise LaunchError(f"{run.run.config_path}: is damaged; leave this run out")
    return {key: value for key, value in _flat(values).items() if key not in _OWN_TO_EACH}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif prefix or key not in _NOT_COMPARED:
            found[f"{prefix}{key}"] = value
    return found


def _differing(of_runs: Sequence[Mapping[str, Any]]) -> Differences:
    names = dict.fromkeys(name for values in of_runs for name in values)
    rows = [(name, [_value(values, name) for values in of_runs]) for name in names]
    return [(name, texts) for name, texts in rows if len(set(texts)) > 1]


def _value(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "-"
    value = values[name]
    return value if isinstance(value, str) else json.dumps(value)


def _steps(run: Facts) -> str:
    step, total = run.progress.get("step"), run.progress.get("total_steps")
    if not isinstance(step, int):
        return ""
    return f"{step:,} of {total:,}" if isinstance(total, int) else f"{step:,}"


def _gpu_hours(run: Facts) -> str:
    if run.plan.get("device") != "cuda" or not run.lives:
        return ""
    return f"{run.seconds / 3600 * ranks(run.plan):,.1f}"


def _last(run: Facts, name: str) -> str:
    return f"{run.series[name].last:.4f}" if name in run.series else ""


def _median(run: Facts, name: str, as_percent: bool = False) -> str:
    if name not in run.series:
        return ""
    median = float(np.median(run.series[name].values))
    return f"{median:.1%}" if as_percent else short(median)


def _largest(run: Facts, name: str) -> str:
    return f"{run.series[name].values.max():.1f}" if name in run.series else ""


def _text(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""
