"""How far a run is, in words and bars, from its progress.json. Pure; knows no terminal."""

import math
import time
from collections.abc import Sequence
from typing import Any

from launch.look_after.tables import duration

BAR_COLUMNS = 50
"""Narrower views have numbers in place of bars."""
BAR_CELLS_MAX = 60
SILENT_SECONDS = 60.0
"""Age of the newest progress above which it is shown."""
SEPARATOR = " | "
FACT_ROWS = 2
"""Rows that numbers may take; what does not fit is left out."""

_RUNNING = ("starting", "training", "evaluating", "saving")
_AT_A_BOUNDARY = ("evaluating", "saving", "done", "stopped")
"""States in which a whole number of epochs is the end of one, not the beginning of the next."""

Line = list[tuple[str, str]]
"""Pieces of one row, each with a style of rich's."""


def progress_line(name: str, progress: dict[str, Any], *, now: float) -> str:
    """One line about how far a run is; unknown things are left out.

    Args:
        name: what the run is called.
        progress: its progress.json.
        now: unix seconds.
    """
    step, total = progress.get("step", 0), progress.get("total_steps") or 0
    first = f"{name} {_state(progress)}"
    if total:
        first += f" step {step:,}/{total:,} ({_percent(step / total, 1)})"
    epoch = _epoch(progress)
    parts = [first, f"epoch {epoch[0]}/{epoch[1]}" if epoch else ""]
    return SEPARATOR.join(filter(None, [*parts, *_facts(progress), *_time(progress, now)]))


def view(
    name: str, progress: dict[str, Any], *, now: float, columns: int, ascii_only: bool = False
) -> list[Line]:
    """Rows about how far a run is: name, state and time left, two bars, and the newest numbers.

    Args:
        name: what the run is called.
        progress: its progress.json.
        now: unix seconds.
        columns: that a row may take at most.
        ascii_only: draw bars of plain characters.
    """
    head: Line = [(name, "bold"), (f": {_state(progress)}", "")]
    rows = [head]
    for part in _time(progress, now):
        if _width(rows[-1]) + len(SEPARATOR) + len(part) <= columns:
            rows[-1].append((SEPARATOR + part, ""))
        else:
            rows.append([(part, "")])
    rows += _bars(progress, columns, ascii_only=ascii_only)
    rows += [[(row, "")] for row in packed(_facts(progress), columns)[:FACT_ROWS]]
    return [_cut(row, columns) for row in rows]


def packed(parts: Sequence[str], columns: int) -> list[str]:
    """Rows of as many parts as fit, in order."""
    rows: list[str] = []
    for part in parts:
        if rows and len(rows[-1]) + len(SEPARATOR) + len(part) <= columns:
            rows[-1] += SEPARATOR + part
        else:
            rows.append(part)
    return rows


def bar(fraction: float, cells: int, *, ascii_only: bool = False) -> tuple[str, str]:
    """The done and the remaining part of a bar, together so many cells wide."""
    full, half, rest = ("#", "-", "-") if ascii_only else ("━", "╸", "─")
    halves = math.floor(2 * cells * min(max(fraction, 0.0), 1.0))
    done = full * (halves // 2) + half * (halves % 2)
    return done, rest * (cells - len(done))


def accuracies(progress: dict[str, Any]) -> list[str]:
    """The newest accuracy on the run's own held-out images and on its probe, of what there is."""
    found = {
        "top-1": progress.get("eval_top1_fraction"),
        "probe top-1": progress.get("probe_top1_fraction"),
    }
    return [f"{name} {_percent(value, 2)}" for name, value in found.items() if value is not None]


def _bars(progress: dict[str, Any], columns: int, *, ascii_only: bool) -> list[Line]:
    """A row for this epoch and one for the whole run, of what is known."""
    step, total = progress.get("step", 0), progress.get("total_steps") or 0
    if not total:
        return []
    rows = [("run", step, total)]
    epoch = _epoch(progress)
    if epoch is not None:
        number, epochs, done, steps = epoch
        rows.insert(0, (f"epoch {number}/{epochs}", done, steps))
    if columns < BAR_COLUMNS:
        texts = [f"{label} {_percent(done / of, 0)}" for label, done, of in rows]
        texts[-1] += f" ({step:,}/{total:,})"
        return [[(row, "")] for row in packed(texts, columns)]
    label_cells = max(len(label) for label, _, _ in rows)
    counts = [f"{done:,}/{of:,}" for _, done, of in rows]
    count_cells = max(map(len, counts))
    percent_cells = len(_percent(1.0, 1))
    cells = min(BAR_CELLS_MAX, columns - label_cells - count_cells - percent_cells - 4)
    lines: list[Line] = []
    for (label, done, of), counted in zip(rows, counts, strict=True):
        past, rest = bar(done / of, cells, ascii_only=ascii_only)
        numbers = f"  {counted.rjust(count_cells)} {_percent(done / of, 1).rjust(percent_cells)}"
        lines.append([(f"{label.ljust(label_cells)} ", ""), (past, "green"), (rest, "dim")])
        lines[-1].append((numbers, ""))
    return lines


def _epoch(progress: dict[str, Any]) -> tuple[int, int, int, int] | None:
    """Number of the epoch under way, of how many; steps done in it, of how many."""
    steps, epochs = progress.get("steps_per_epoch"), progress.get("epochs")
    if not steps or not epochs:
        return None
    steps, epochs = round(steps), round(epochs)
    whole, done = divmod(progress.get("step", 0), steps)
    ended = whole > 0 and done == 0
    if ended and (progress.get("state") in _AT_A_BOUNDARY or whole >= epochs):
        return whole, epochs, steps, steps
    return whole + 1, epochs, done, steps


def _state(progress: dict[str, Any]) -> str:
    state, fraction = progress.get("state", ""), progress.get("evaluated_fraction")
    if state == "evaluating" and fraction is not None:
        return f"{state} {_percent(fraction, 0)}"
    return str(state)


def _facts(progress: dict[str, Any]) -> list[str]:
    parts = []
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.4g}")
    if progress.get("accuracy_fraction") is not None:
        parts.append(f"accuracy {_percent(progress['accuracy_fraction'], 1)}")
    parts += accuracies(progress)
    rate, of_device = (
        progress.get(name) for name in ("images_per_second", "images_per_second_per_device")
    )
    if rate is not None:
        several = of_device is not None and round(of_device) != round(rate)
        each = f" ({of_device:,.0f} per device)" if several else ""
        parts.append(f"{rate:,.0f} images/s{each}")
    if progress.get("data_wait_fraction") is not None:
        parts.append(f"data wait {_percent(progress['data_wait_fraction'], 1)}")
    return parts


def _time(progress: dict[str, Any], now: float) -> list[str]:
    """Time left and when that is, of what runs; and how long nothing was heard, if it is long."""
    parts = []
    written = progress.get("time")
    age = 0.0 if written is None else max(0.0, now - written)
    if progress.get("state") in _RUNNING:
        eta = progress.get("eta_seconds")
        if eta is None:
            parts.append("time left unknown")
        else:
            left = max(0.0, eta - age)
            parts.append(f"time left {duration(left)}, ends {_clock(now + left, now)}")
    if age > SILENT_SECONDS:
        parts.append(f"no news for {age:.0f} s")
    return parts


def _clock(moment: float, now: float) -> str:
    """Local time of day, with the day where it is another."""
    when, today = time.localtime(moment), time.localtime(now)
    if when[:3] == today[:3]:
        return time.strftime("%H:%M", when)
    return time.strftime("%a %H:%M" if moment - now < 6 * 86400 else "%d %b %H:%M", when)


def _percent(fraction: float, digits: int) -> str:
    return f"{100 * fraction:.{digits}f} %"


def _width(row: Line) -> int:
    return sum(len(text) for text, _ in row)


def _cut(row: Line, columns: int) -> Line:
    """As much of a row as fits."""
    kept: Line = []
    for text, style in row:
        kept.append((text[: max(0, columns - _width(kept))], style))
    return kept
