"""Tables of a report: evaluations, where the time went, attempts, events, what the names mean."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pretrain.metrics.console import duration
from pretrain.metrics.names import METRICS
from pretrain.metrics.report.charts import PARTS
from pretrain.metrics.report.elements import clock_time, escape, note, percent, table
from pretrain.metrics.report.facts import Facts

EVENTS_PER_KIND_MAX = 50
"""Events of one kind that are listed; the newest are."""
ATTEMPTS_MAX = 100
"""Attempts that are listed; the newest are, and the first."""
DETAILS_MAX = 400
"""Letters of an event's details."""
OWN, PROBE = "eval/", "eval/probe_"
"""How the metrics of the run's own held-out images begin, and those of its probe."""


def evaluations(facts: Facts, prefix: str) -> str:
    """Every evaluation of a split, newest first: of the weights as trained and of their average."""
    names = ("top1_fraction", "top5_fraction", "loss", "images")
    columns = [f"{prefix}{name}" for name in names] + [f"{prefix}ema_{name}" for name in names]
    by_step: dict[int, dict[str, Any]] = {}
    for record in facts.records:
        found = {name: record[name] for name in columns if name in record}
        if found:
            by_step.setdefault(record["step"], {}).update(found)
    # Versions before measured one of the two only.
    kinds = [
        kind
        for kind in ("", "ema_")
        if any(f"{prefix}{kind}images" in row for row in by_step.values())
    ]
    head = ["step"]
    for kind in kinds:
        weights = "average " if kind else ""
        head += [f"{weights}{name}" for name in ("top-1", "top-5", "loss")]
    rows = []
    for step, row in sorted(by_step.items(), reverse=True):
        cells = [f"{step:,}"]
        for kind in kinds:
            at = f"{prefix}{kind}"
            cells += [percent(row.get(f"{at}top{k}_fraction")) for k in (1, 5)]
            cells.append(_loss(row, f"{at}loss"))
        images = [row[f"{prefix}{kind}images"] for kind in kinds if f"{prefix}{kind}images" in row]
        rows.append((*cells, f"{max(images, default=0):,.0f}"))
    return table((*head, "images"), rows if kinds else [], kind="numbers")


def _loss(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    return "not finite" if row[name] is None else f"{row[name]:.4f}"


def time_totals(facts: Facts) -> str:
    """Hours and share of each part of the run's time."""
    sums = {
        label: float(facts.series[name].values.sum())
        for name, label in PARTS.items()
        if name in facts.series
    }
    whole = sum(sums.values())
    if "compute" not in sums or whole <= 0:
        return ""
    rows = [
        (label, duration(seconds), f"{seconds / 3600:,.2f}", f"{seconds / whole:.2%}")
        for label, seconds in sums.items()
    ]
    rows.append(("together", duration(whole), f"{whole / 3600:,.2f}", ""))
    rest = facts.seconds - whole
    said = ""
    if rest > 0:
        said = note(
            f"{duration(rest)} of the {duration(facts.seconds)} that attempts lasted are in no "
            "record: starting, ending, and steps that had to be trained again."
        )
    return table(("rank zero's time", "h:mm:ss", "hours", "share"), rows, kind="numbers") + said


def attempts(facts: Facts) -> str:
    """Every life of the run; of very many the first and the newest."""
    lives = facts.lives
    left_out = max(len(lives) - ATTEMPTS_MAX, 0)
    shown = [*lives[:1], *lives[1 + left_out :]] if left_out else lives
    rows = [
        (
            str(life.number),
            clock_time(life.first),
            duration(life.seconds),
            f"{life.steps[0]:,} to {life.steps[1]:,}" if life.steps else "none",
            life.outcome,
            life.reason,
        )
        for life in shown
    ]
    said = note(f"{left_out:,} attempts between are in attempts.jsonl.") if left_out else ""
    ends = Counter(life.outcome or "unknown" for life in lives)
    if len(lives) > 10:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in ends.most_common())
        said += note(f"How they ended: {escape(kinds)}.")
    head = ("attempt", "started, UTC", "lasted", "steps recorded", "ended", "reason")
    return said + table(head, rows)


def events(facts: Facts) -> str:
    """What happened, newest first; of each kind the newest."""
    counts = Counter(str(event.get("event")) for event in facts.events)
    shown: Counter[str] = Counter()
    rows = []
    for event in reversed(facts.events):
        kind = str(event.get("event"))
        shown[kind] += 1
        if shown[kind] <= EVENTS_PER_KIND_MAX:
            rest = {key: event[key] for key in event if key not in ("time", "attempt", "event")}
            details = ", ".join(f"{key} {_plain(value)}" for key, value in rest.items())
            if len(details) > DETAILS_MAX:
                details = f"{details[:DETAILS_MAX]} …"
            attempt = str(event.get("attempt", ""))
            rows.append((clock_time(event.get("time")), attempt, kind.replace("_", " "), details))
    left_out = [
        f"{count - EVENTS_PER_KIND_MAX:,} older “{escape(kind)}”"
        for kind, count in counts.items()
        if count > EVENTS_PER_KIND_MAX
    ]
    said = "Newest first."
    if left_out:
        said += f" Not shown: {', '.join(left_out)}; see events.jsonl."
    return (note(said) if rows else "") + table(("time, UTC", "attempt", "event", "details"), rows)


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def meanings(facts: Facts) -> str:
    """What every recorded name means."""
    recorded = {name for record in facts.records for name in record}
    rows = [
        (name, metric.unit, metric.reduction, metric.meaning)
        for name, metric in METRICS.items()
        if name in recorded
    ]
    return table(("name", "unit", "reduction", "meaning"), rows)
