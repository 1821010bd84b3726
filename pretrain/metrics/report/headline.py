"""The top of a report: how far the run is, its main numbers, and what needs looking at."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from pretrain.metrics.console import duration
from pretrain.metrics.report.elements import clock_time, escape, is_number, note, percent, tiles
from pretrain.metrics.report.facts import Facts, text_of

ALERTS_SHOWN = 12
FAILURE_LINES_SHOWN = 12
_RUNNING = ("starting", "training", "evaluating", "saving")


def headline(facts: Facts) -> str:
    """Bar, alerts and tiles."""
    return _bar(facts) + _failure(facts) + _alerts(facts) + tiles(_tiles(facts))


def best(facts: Facts, prefix: str) -> tuple[float, int, float] | None:
    """(newest top-1, step of the best, best top-1) of an evaluation; None where it was not made."""
    found = facts.series.get(f"{prefix}top1_fraction")
    if found is None:
        return None
    place = int(np.argmax(found.values))
    return found.last, int(found.steps[place]), float(found.values[place])


def _bar(facts: Facts) -> str:
    step, total = facts.progress.get("step"), facts.progress.get("total_steps")
    if not is_number(step) or not is_number(total) or not total:
        return ""
    return f'<progress max="1" value="{min(step / total, 1):.4f}" aria-label="steps"></progress>'


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    return [*_accuracy_tiles(facts), *_progress_tiles(facts), *_speed_tiles(facts)]


def _accuracy_tiles(facts: Facts) -> list[tuple[str, str, str]]:
    labels = {
        "eval/": "top-1",
        "eval/ema_": "top-1, average",
        "eval/probe_": "probe top-1",
        "eval/probe_ema_": "probe, average",
    }
    shown = []
    for prefix, label in labels.items():
        found = best(facts, prefix)
        if found is not None:
            newest, step, highest = found
            shown.append((label, percent(newest), f"best {percent(highest)}, step {step:,}"))
    loss = facts.series.get("train/loss")
    if loss is not None:
        shown.append(("loss", f"{loss.last:.4f}", f"training, step {int(loss.steps[-1]):,}"))
    return shown


def _progress_tiles(facts: Facts) -> list[tuple[str, str, str]]:
    progress, shown = facts.progress, []
    step, epoch = (progress.get(name) or 0 for name in ("step", "epoch"))
    total = progress.get("total_steps") or facts.plan.get("total_steps") or 0
    shown.append(("steps", f"{step:,}", f"of {total:,}, {epoch:.2f} epochs"))
    left = progress.get("eta_seconds")
    if facts.state in _RUNNING and is_number(left):
        shown.append(("time left", duration(left), "evaluations and saves included"))
    if facts.lives:
        count = len(facts.lives)
        plural = "s" if count > 1 else ""
        shown.append(("wall time", duration(facts.seconds), f"in {count} attempt{plural}"))
    seen = facts.series.get("data/samples_consumed")
    if seen is not None:
        count = f"{seen.last / 1e6:,.1f} M" if seen.last >= 1e8 else f"{seen.last:,.0f}"
        shown.append(("images seen", count, "repeats included"))
    return shown


def _speed_tiles(facts: Facts) -> list[tuple[str, str, str]]:
    shown = []
    rates = facts.series.get("perf/images_per_second")
    if rates is not None:
        shown.append(("throughput", f"{np.median(rates.values):,.0f}", "images/s, median"))
    used = facts.series.get("perf/flop_utilisation_fraction")
    if used is not None:
        shown.append(("FLOP utilisation", f"{np.median(used.values):.1%}", "median"))
    memory = facts.series.get("memory/peak_gib")
    if memory is not None:
        shown.append(("peak memory", f"{memory.values.max():.1f}", "GiB, the rank that used most"))
    bad = facts.series.get("data/bad_samples")
    if bad is not None and bad.values.any():
        shown.append(("bad samples", f"{bad.values.sum():,.0f}", "images replaced"))
    return shown


def _failure(facts: Facts) -> str:
    """Why the run was given up, in the launcher's own words."""
    lines = text_of(facts.run.failure_path).strip().splitlines()
    if not lines:
        return ""
    shown = "\n".join(lines[:FAILURE_LINES_SHOWN])
    more = note("more in failure.txt") if len(lines) > FAILURE_LINES_SHOWN else ""
    return (
        '<div class="alert" role="alert"><h2>The run was given up</h2>'
        f"<pre>{escape(shown)}</pre>{more}</div>"
    )


def _alerts(facts: Facts) -> str:
    found = [event for event in facts.events if event.get("event") == "alert"]
    if not found:
        return ""
    counts = Counter(_about(event) for event in found)
    kinds = ", ".join(f"{kind} ({count:,})" for kind, count in counts.most_common())
    summary = f"<p>{escape(kinds)}; newest first</p>" if len(found) > len(counts) else ""
    items = "".join(_alert(event) for event in reversed(found[-ALERTS_SHOWN:]))
    more = len(found) - ALERTS_SHOWN
    older = note(f"{more:,} older ones are in events.jsonl.") if more > 0 else ""
    return f'<div class="alert" role="alert"><h2>Alerts</h2>{summary}<ul>{items}</ul>{older}</div>'


def _alert(event: Mapping[str, Any]) -> str:
    step = event.get("step")
    where = f", step {step:,}" if isinstance(step, int) else ""
    return (
        f"<li><b>{escape(_about(event))}</b> {escape(str(event.get('text', '')))}"
        f" <small>{clock_time(event.get('time'))}{where}</small></li>"
    )


def _about(event: Mapping[str, Any]) -> str:
    return str(event.get("about", "alert")).replace("_", " ")
