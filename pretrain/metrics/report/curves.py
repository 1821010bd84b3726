"""Charts: recorded numbers to figures of inline SVG that take their colours from the page."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pretrain.metrics.report.elements import escape

POINTS_MAX = 240
"""Most points of a line; longer series show the mean of each bin and, shaded, its range."""
TICKS_MAX = 120
"""Most marks along an edge."""
STACK_MAX = 60
"""Most places of areas upon each other."""
LABELLED_ATTEMPTS_MAX = 12
MARKED_ATTEMPTS_MAX = 40
"""Where there are more, they are ticks at the upper edge."""
WIDE_RANGE = 100.0
"""Largest over smallest value from which on a chart that may be logarithmic is."""
SIZE_INCHES = (4.6, 2.3)

# Stand-ins in the SVG for the page's CSS variables, so that one drawing serves light and dark.
INK, GRID, MARK = "#010101", "#020202", "#030303"
SERIES = tuple(f"#04040{number}" for number in range(8))
CSS_COLOURS = {
    INK: "var(--ink-soft)",
    GRID: "var(--grid)",
    MARK: "var(--mark)",
    **{stand_in: f"var(--series-{number + 1})" for number, stand_in in enumerate(SERIES)},
}
ROUND = (1, 2, 2.5, 5, 10)
"""Distances of ticks, up to a power of ten."""
_PLAIN = FuncFormatter(lambda value, _: f"{value:.4g}".replace("e-0", "e-"))
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))
"""Of the first eight lines, the next eight, …"""


@dataclass(frozen=True)
class Line:
    """One curve: values at places, in order. ``dots`` marks each, where there are not too many."""

    label: str
    x: Sequence[float] | np.ndarray
    values: Sequence[float] | np.ndarray
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """One drawing of lines over a common axis.

    Attributes:
        title: what is shown, with its unit.
        lines: one or more; with more, a legend names them.
        percent: whether values are fractions to be shown as per cent.
        from_zero: whether the axis starts at 0.
        log_if_wide: whether the axis may be logarithmic.
        stacked: whether the lines are shares that lie upon each other, each from its x before.
        axis: what x is.
        colours: numbers of the lines' colours, from 0; those of their order where empty.
    """

    title: str
    lines: tuple[Line, ...]
    percent: bool = False
    from_zero: bool = False
    log_if_wide: bool = False
    stacked: bool = False
    axis: str = "step"
    colours: tuple[int, ...] = ()

    def colour(self, line: int) -> int:
        """The number of a line's colour, which may be more than there are colours."""
        return self.colours[line] if self.colours else line


@dataclass(frozen=True)
class Marks:
    """What is marked on every chart over steps.

    Attributes:
        last: where the axis ends; it starts at 0.
        attempts: (attempt, first recorded step) of every attempt after the first.
        evaluations: steps after which accuracy was measured.
    """

    last: float
    attempts: Sequence[tuple[int, float]] = field(default=())
    evaluations: Sequence[float] = field(default=())


def figure(chart: Chart, marks: Marks) -> str:
    """A chart as a ``<figure>`` with its legend, and its numbers for `pages`' read-out.

    The drawing has no size, fonts or colours of its own.
    """
    shown = [_binned_line(chart, line) for line in chart.lines]
    svg, box, limits = _draw(chart, shown, marks)
    legend = "".join(
        f'<span class="key"><i style="--colour:var(--series-{colour % len(SERIES) + 1})"'
        f' class="dash-{colour // len(SERIES) % len(DASHES)}"></i>{escape(line.label)}</span>'
        for line, colour in ((line, chart.colour(at)) for at, line in enumerate(chart.lines))
    )
    data = {
        "axis": chart.axis,
        "box": box,
        "x": limits,
        "percent": chart.percent,
        "lines": [
            {
                "label": line.label,
                "colour": chart.colour(number) % len(SERIES) + 1,
                "at": _rounded(x, whole=chart.axis != "hours"),
                "y": _rounded(mean),
            }
            for number, (line, (x, mean, _, _)) in enumerate(zip(chart.lines, shown, strict=True))
        ],
    }
    return (
        f'<figure class="chart" data-chart="{escape(json.dumps(data, separators=(",", ":")))}">'
        f"<figcaption>{escape(chart.title)}</figcaption>"
        + (f'<div class="legend">{legend}</div>' if len(chart.lines) > 1 else "")
        + f"{svg}</figure>"
    )


def binned(
    x: Sequence[float] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    points_max: int = POINTS_MAX,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places, means, minima and maxima of at most ``points_max`` bins of equal length.

    A series that is short enough comes back as it is.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(values, dtype=float)
    if len(x) <= points_max:
        return x, y, y, y
    starts = np.linspace(0, len(x), points_max + 1).astype(int)
    counts, starts = np.diff(starts), starts[:-1]
    mean = np.add.reduceat(y, starts) / counts
    low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
    return np.add.reduceat(x, starts) / counts, mean, low, high


_Binned = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _binned_line(chart: Chart, line: Line) -> _Binned:
    if chart.stacked:
        x, y = np.asarray(line.x, dtype=float), np.asarray(line.values, dtype=float)
        return x, y, y, y
    return binned(line.x, line.values)


def _draw(
    chart: Chart, shown: Sequence[_Binned], marks: Marks
) -> tuple[str, list[float], list[float]]:
    """The element, where its axes lie in it (left, right, top, bottom), and the limits of x."""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": chart.title, "font.size": 9}
    with matplotlib.rc_context(settings):
        drawing = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasSVG(drawing)
        axes = drawing.add_subplot()
        if chart.stacked:
            _stack(axes, shown)
        for number, (line, binned_line) in enumerate(zip(chart.lines, shown, strict=True)):
            if not chart.stacked:
                _plot(axes, line, binned_line, chart.colour(number))
        _dress(axes, chart, shown)
        axes.set_xlim(0, marks.last or 1)
        _mark(axes, marks)
        file = io.StringIO()
        drawing.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        place = axes.get_position()
    width, height = (72 * inches for inches in SIZE_INCHES)
    box = [place.x0 * width, place.x1 * width, (1 - place.y1) * height, (1 - place.y0) * height]
    limits = [0.0, float(marks.last or 1)]
    return _inline(file.getvalue(), chart.title), [round(edge, 1) for edge in box], limits


def _plot(axes: Axes, line: Line, shown: _Binned, number: int) -> None:
    x, mean, low, high = shown
    colour = SERIES[number % len(SERIES)]
    dashes = DASHES[number // len(SERIES) % len(DASHES)]
    marker = "o" if len(x) <= (60 if line.dots else 30) else ""
    if (low < high).any():
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    style: Any = {"color": colour, "linewidth": 1.5, "linestyle": dashes}
    axes.plot(x, mean, marker=marker, markersize=3, clip_on=not marker, **style)


def _stack(axes: Axes, shown: Sequence[_Binned]) -> None:
    """Areas upon each other, each value from the place before its own."""
    x = np.concatenate(([0.0], shown[0][0]))
    heights = [np.concatenate((y[:1], y)) for _, y, _, _ in shown]
    axes.stackplot(x, heights, colors=SERIES[: len(shown)], step="pre", linewidth=0)
    axes.set_ylim(0, 1)


def _dress(axes: Axes, chart: Chart, shown: Sequence[_Binned]) -> None:
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(which="both", colors=INK, length=0)
    axes.set_xlabel(chart.axis, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=chart.axis != "hours", steps=ROUND))
    axes.xaxis.set_major_formatter(_PLAIN if chart.axis == "hours" else EngFormatter(sep=""))
    lowest = min(float(low.min()) for _, _, low, _ in shown)
    highest = max(float(high.max()) for _, _, _, high in shown)
    if chart.log_if_wide and lowest > 0 and highest > WIDE_RANGE * lowest:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(_power))
        return
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    if chart.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    elif highest >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axes.yaxis.set_major_formatter(_PLAIN)
    if highest == lowest and not chart.stacked:  # matplotlib would magnify rounding errors
        room = abs(highest) * 0.1 or 1.0
        axes.set_ylim(lowest - room, highest + room)
    if chart.from_zero:
        axes.set_ylim(bottom=0)


def _power(value: float, _: int) -> str:
    """A tick of a logarithmic axis."""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _mark(axes: Axes, marks: Marks) -> None:
    transform = axes.get_xaxis_transform()
    style: Any = {}
    if len(marks.evaluations):
        places = _thinned(marks.evaluations, marks.last)
        flat = [0.0] * len(places)
        style = {"color": MARK, "marker": "|", "markersize": 5, "linestyle": ""}
        axes.plot(places, flat, transform=transform, clip_on=False, **style)
    steps = [step for _, step in marks.attempts]
    if len(steps) > MARKED_ATTEMPTS_MAX:
        places = _thinned(steps, marks.last)
        pairs = [edge for place in places for edge in (place, place, float("nan"))]
        heights = [1.01, 1.05, float("nan")] * len(places)
        style = {"color": MARK, "linewidth": 0.8, "clip_on": False}
        axes.plot(pairs, heights, transform=transform, **style)
        return
    for step in steps:
        axes.axvline(step, color=MARK, linewidth=0.9, linestyle=(0, (3, 3)))
    if len(steps) <= LABELLED_ATTEMPTS_MAX:
        for first, last, step in _labels(marks.attempts, 0.05 * (marks.last or 1)):
            late = step > 0.95 * marks.last
            axes.annotate(
                first if first == last else f"{first} to {last}",
                (step, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-2 if late else 2, 1),
                textcoords="offset points",
                ha="right" if late else "left",
                va="bottom",
                color=INK,
                fontsize=8,
            )


def _labels(attempts: Sequence[tuple[int, float]], room: float) -> list[tuple[str, str, float]]:
    """First and last attempt and place of each label; neighbours without room share one."""
    groups: list[list[tuple[int, float]]] = []
    for attempt in attempts:
        if groups and attempt[1] - groups[-1][0][1] < room:
            groups[-1].append(attempt)
        else:
            groups.append([attempt])
    return [(str(group[0][0]), str(group[-1][0]), group[0][1]) for group in groups]


def _thinned(places: Sequence[float], last: float) -> list[float]:
    """The places without those that no eye could tell apart."""
    least = (last or 1) / TICKS_MAX
    kept = list(places[:1])
    for place in places[1:]:
        if place - kept[-1] >= least:
            kept.append(place)
    return kept


def _rounded(values: np.ndarray, *, whole: bool = False) -> list[float]:
    """Numbers as a page holds them: four digits, and steps whole."""
    if whole:
        return [round(float(value)) for value in values]
    return [float(f"{value:.4g}") for value in values]


def _inline(svg: str, title: str) -> str:
    """Make the file an element: no prologue, fixed size or foreign colours, and ids of its own."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1, flags=re.DOTALL)
    # A hundredth of a point is more than a screen shows.
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    prefix = re.sub(r"\W+", "-", title.lower()) + "--"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    for stand_in, colour in CSS_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def stacked_shares(
    steps: np.ndarray, parts: Sequence[tuple[str, np.ndarray]], bins_max: int = STACK_MAX
) -> tuple[Line, ...]:
    """Parts of sums over at most ``bins_max`` bins of neighbouring records, as shares of each.

    Args:
        steps: of the records, rising.
        parts: label, and amount in each record, none negative.
        bins_max: how many bins there are at most.
    """
    edges = np.unique(np.linspace(0, len(steps), min(len(steps), bins_max) + 1).astype(int))
    sums = np.array([np.add.reduceat(amount, edges[:-1]) for _, amount in parts])
    whole = np.maximum(sums.sum(axis=0), 1e-12)
    ends = [float(steps[stop - 1]) for _, stop in pairwise(edges)]
    return tuple(
        Line(label, ends, part / whole) for (label, _), part in zip(parts, sums, strict=True)
    )
