"""report.html: one run on one page, from its files alone; needs no network to be read."""

import html
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pretrain.files import read_json, replace_text
from pretrain.metrics.console import duration
from pretrain.metrics.jsonl import read_lines, series, with_value
from pretrain.metrics.names import METRICS
from pretrain.metrics.report.style import STYLE
from pretrain.run_directory import RunDirectory

EVENTS_PER_KIND_MAX = 50
"""Events of one kind that are listed; the newest are."""
OWN, PROBE = "eval/", "eval/probe_"
"""How the metrics of the run's own held-out images begin, and those of its probe."""

Records = Sequence[Mapping[str, Any]]


def write_report(run: RunDirectory, state: str | None = None) -> Path:
    """Write the report of a run as it stands, replacing an earlier one; rank zero, or any tool.

    Args:
        run: the run's directory.
        state: what to say of it; None takes progress.json's word.

    Returns:
        Its path.

    Raises:
        OSError: it cannot be written.
    """
    replace_text(run.report_path, report_html(run, state))
    return run.report_path


def report_html(run: RunDirectory, state: str | None = None) -> str:
    """The report of a run as text: UTF-8 HTML without any outside reference.

    Files that are not there yet, or damaged, leave their section out.
    """
    lines = read_lines(run.metrics_path)
    records = [line for line in lines if isinstance(line.get("step"), int)]
    events = read_lines(run.events_path)
    progress = run.read_progress() or {"state": "not started"}
    if state is not None:
        progress["state"] = state
    name = html.escape(run.path.name)
    sections = [
        _headline(records, events, progress),
        _curves(records),
        *(
            _section(
                title,
                _evaluations(records, prefix),
                folded=len(with_value(records, f"{prefix}images")) > 8,
            )
            for title, prefix in (("Evaluations", OWN), ("Evaluations of the probe", PROBE))
        ),
        _section("Attempts", _attempts(records, events, progress, run)),
        _section("Events, newest first", _events(events)),
        _section("Reproduce", _code(_command(run))),
        _section("Config", _code(_text(run.config_path)), folded=True),
        _section("Plan", _code(_text(run.plan_path)), folded=True),
        _section("Environment", _code(_text(run.environment_path)), folded=True),
        _section("What the numbers mean", _meanings(records), folded=True),
    ]
    state = html.escape(str(progress.get("state")))
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: training report</title>\n<style>\n{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n"
        f'<header><h1>{name}</h1><span class="state {state}">{state}</span>'
        f"<small>written {written}</small></header>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _headline(records: Records, events: Records, progress: Mapping[str, Any]) -> str:
    rates = [value for _, value in series(records, "perf/images_per_second")]
    seen = series(records, "data/samples_consumed")
    step, total = progress.get("step", 0), progress.get("total_steps", 0)
    tiles = [("steps", f"{step:,}", f"of {total:,}, {progress.get('epoch', 0):.2f} epochs")]
    tiles[:0] = _accuracy_tiles(records)
    if seen:
        tiles.append(("images seen", f"{seen[-1][1]:,.0f}", "repeats included"))
    lives = _lives(records, events)
    if lives:
        seconds = sum(last - first for first, last in lives.values())
        plural = "s" if len(lives) > 1 else ""
        tiles.append(("wall time", duration(seconds), f"in {len(lives)} attempt{plural}"))
    if rates:
        tiles.append(("throughput", f"{statistics.median(rates):,.0f}", "images/s, median"))
    cells = "".join(
        f"<div><dt>{label}</dt><dd>{value}</dd><dd><small>{note}</small></dd></div>"
        for label, value, note in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _accuracy_tiles(records: Records) -> list[tuple[str, str, str]]:
    tiles = []
    for label, prefix in (("top-1", OWN), ("probe top-1", PROBE)):
        accuracy = series(records, f"{prefix}top1_fraction")
        if accuracy:
            best_step, best = max(accuracy, key=lambda point: point[1])
            note = f"best {best:.2%}, step {best_step:,}"
            tiles.append((label, f"{accuracy[-1][1]:.2%}", note))
    return tiles


def _curves(records: Records) -> str:
    first_steps: dict[int, int] = {}
    for record in records:
        first_steps.setdefault(int(record.get("attempt", 1)), record["step"])
    starts = list(first_steps.items())[1:]
    # Matplotlib takes most of a second to import, and training needs it once, at the end.
    from pretrain.metrics.report.curves import charts, draw

    figures = [
        f"<figure><figcaption>{html.escape(chart.title)}</figcaption>"
        f"{draw(chart, records[-1]['step'], starts)}</figure>"
        for chart in charts(records)
    ]
    if not figures:
        return "<p>Nothing was recorded yet.</p>"
    notes = "Shaded: the range of the records that a point of a long curve averages."
    if starts:
        notes += " Dashed: where a later attempt took over."
    return f'<div class="curves">{"".join(figures)}</div><p><small>{notes}</small></p>'


def _evaluations(records: Records, prefix: str) -> str:
    rows = [
        (
            f"{record['step']:,}",
            f"{record[f'{prefix}top1_fraction']:.2%}",
            f"{record[f'{prefix}top5_fraction']:.2%}",
            "not finite"
            if record.get(f"{prefix}loss") is None
            else f"{record[f'{prefix}loss']:.4f}",
            f"{record[f'{prefix}images']:,.0f}",
        )
        for record in with_value(records, f"{prefix}images")
    ]
    return _table(("step", "top-1", "top-5", "loss", "images"), rows, numbers=True)


def _attempts(
    records: Records, events: Records, progress: Mapping[str, Any], run: RunDirectory
) -> str:
    # The supervisor notes an end after this is written: the newest attempt speaks for itself.
    ends: dict[Any, Any] = {progress.get("attempt"): {"outcome": progress.get("state")}}
    for line in read_lines(run.attempts_path):
        if line.get("event") == "end":
            ends[line.get("attempt")] = line
    steps: dict[int, list[int]] = {}
    for record in records:
        steps.setdefault(int(record.get("attempt", 1)), []).append(record["step"])
    rows = []
    for attempt, (first, last) in sorted(_lives(records, events).items()):
        end = ends.get(attempt, {})
        covered = steps.get(attempt)
        rows.append(
            (
                str(attempt),
                _time(first),
                duration(last - first),
                f"{covered[0]:,} to {covered[-1]:,}" if covered else "none",
                str(end.get("outcome") or ""),
                str(end.get("reason") or ""),
            )
        )
    return _table(("attempt", "started", "lasted", "steps recorded", "ended", "reason"), rows)


def _events(events: Records) -> str:
    counts = Counter(str(event.get("event")) for event in events)
    shown: Counter[str] = Counter()
    rows = []
    for event in reversed(events):
        kind = str(event.get("event"))
        shown[kind] += 1
        if shown[kind] <= EVENTS_PER_KIND_MAX:
            rest = {key: event[key] for key in event if key not in ("time", "attempt", "event")}
            details = ", ".join(f"{key} {value}" for key, value in rest.items())
            attempt = str(event.get("attempt", ""))
            rows.append((_time(event.get("time")), attempt, kind.replace("_", " "), details))
    table = _table(("time", "attempt", "event", "details"), rows)
    left_out = [
        f"{count - EVENTS_PER_KIND_MAX:,} older “{html.escape(kind)}”"
        for kind, count in counts.items()
        if count > EVENTS_PER_KIND_MAX
    ]
    more = f"<p><small>Not shown: {', '.join(left_out)}; see events.jsonl.</small></p>"
    return table + (more if left_out else "")


def _meanings(records: Records) -> str:
    recorded = {name for record in records for name in record}
    rows = [
        (name, metric.unit, metric.reduction, metric.meaning)
        for name, metric in METRICS.items()
        if name in recorded
    ]
    return _table(("name", "unit", "reduction", "meaning"), rows)


def _command(run: RunDirectory) -> str:
    told = (read_json(run.environment_path) or {}).get("command")
    if isinstance(told, list):
        return shlex.join(str(word) for word in told)
    again = f"--config {run.config_path} --name {run.path.name}-again"
    return f"cd {run.code_path} && python -m launch.slurm {again}"


def _lives(records: Records, events: Records) -> dict[int, tuple[float, float]]:
    """First and last unix time each attempt wrote anything."""
    lives: dict[int, tuple[float, float]] = {}
    for line in (*records, *events):
        stamp, attempt = line.get("time"), line.get("attempt")
        if isinstance(stamp, int | float) and isinstance(attempt, int):
            first, last = lives.get(attempt, (stamp, stamp))
            lives[attempt] = (min(first, stamp), max(last, stamp))
    return lives


def _section(title: str, content: str, *, folded: bool = False) -> str:
    if not content:
        return ""
    if folded:
        return f"<details><summary>{title}</summary>{content}</details>"
    return f"<section><h2>{title}</h2>{content}</section>"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    lines = [f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows]
    if not lines:
        return ""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    kind = ' class="numbers"' if numbers else ""
    return (
        f'<div class="wide"><table{kind}><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    kind = ' class="time"' if re.fullmatch(r"\d{4}-\d\d-\d\d [\d:]{8}", text) else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _code(text: str) -> str:
    return f"<pre>{html.escape(text.strip())}</pre>" if text.strip() else ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _time(stamp: object) -> str:
    if not isinstance(stamp, int | float):
        return ""
    return datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d %H:%M:%S")
