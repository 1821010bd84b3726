"""The report's charts: recorded numbers to inline SVG that takes its colours from the page."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from pretrain.metrics.jsonl import series

Records = Sequence[Mapping[str, Any]]

POINTS_MAX = 240
"""Most points of a line; longer series show the mean of each bin and, shaded, its range."""
LABELLED_ATTEMPTS_MAX = 12

# Stand-ins in the SVG for the page's CSS variables, so that one drawing serves light and dark.
INK, GRID, MARK, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
CSS_COLOURS = {
    INK: "var(--ink-soft)",
    GRID: "var(--grid)",
    MARK: "var(--mark)",
    FIRST: "var(--series-1)",
    SECOND: "var(--series-2)",
}


@dataclass(frozen=True)
class Line:
    """One curve: values at steps, in order."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """One drawing of up to two lines over steps.

    Attributes:
        title: what is shown, with its unit.
        lines: one or two; with two, a legend names them.
        percent: whether values are fractions to be shown as per cent.
        from_zero: whether the axis starts at 0.
    """

    title: str
    lines: tuple[Line, ...]
    percent: bool = False
    from_zero: bool = False


def charts(records: Records) -> list[Chart]:
    """The report's charts of a run, without those that have nothing to show."""

    def lines(*wanted: tuple[str, str]) -> tuple[Line, ...]:
        found = ((label, series(records, name)) for label, name in wanted)
        return tuple(
            Line(label, *map(list, zip(*points, strict=True))) for label, points in found if points
        )

    drawn = [
        Chart("Loss", lines(("training", "train/loss"), ("evaluation", "eval/loss"))),
        Chart(
            "Accuracy",
            lines(("top-1", "eval/top1_fraction"), ("top-5", "eval/top5_fraction")),
            percent=True,
        ),
        Chart(
            "Accuracy of the probe",
            lines(("top-1", "eval/probe_top1_fraction"), ("top-5", "eval/probe_top5_fraction")),
            percent=True,
        ),
        Chart("Learning rate", lines(("learning rate", "train/learning_rate")), from_zero=True),
        Chart("Images per second", lines(("images/s", "perf/images_per_second")), from_zero=True),
        Chart("Gradient norm before clipping", lines(("norm", "train/grad_norm")), from_zero=True),
        Chart(
            "Time spent waiting for data",
            lines(("waiting", "perf/data_wait_fraction")),
            percent=True,
            from_zero=True,
        ),
    ]
    return [chart for chart in drawn if chart.lines]


def draw(chart: Chart, last_step: int, attempt_starts: Sequence[tuple[int, int]]) -> str:
    """Draw a chart as one ``<svg>`` element without fixed size, fonts or colours.

    Args:
        chart: what to draw.
        last_step: where the axis ends; it starts at 0.
        attempt_starts: (attempt, first recorded step) of every attempt after the first.
    """
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": chart.title, "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _dress(axes, chart)
        for line, colour in zip(chart.lines, (FIRST, SECOND), strict=False):
            _plot(axes, line, colour)
        _mark_attempts(axes, attempt_starts)
        if len(chart.lines) > 1:
            axes.legend(frameon=False, labelcolor=INK, loc="best")
        axes.set_xlim(0, last_step)
        if chart.from_zero:
            axes.set_ylim(bottom=0)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), chart.title)


def binned(
    steps: Sequence[int], values: Sequence[float], points_max: int = POINTS_MAX
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, means, minima and maxima of at most ``points_max`` bins of equal length.

    A series that is short enough comes back as it is.
    """
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if len(x) <= points_max:
        return x, y, y, y
    edges = np.linspace(0, len(x), points_max + 1).astype(int)
    bins = [slice(low, high) for low, high in pairwise(edges)]
    mean = np.array([y[part].mean() for part in bins])
    low = np.array([y[part].min() for part in bins])
    high = np.array([y[part].max() for part in bins])
    return np.array([x[part].mean() for part in bins]), mean, low, high


def _plot(axes: Axes, line: Line, colour: str) -> None:
    x, mean, low, high = binned(line.steps, line.values)
    marker = "o" if len(x) <= 40 else ""
    if (low < high).any():
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, mean, color=colour, linewidth=1.6, marker=marker, markersize=3, label=line.label)


def _dress(axes: Axes, chart: Chart) -> None:
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, length=0)
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if chart.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def _mark_attempts(axes: Axes, starts: Sequence[tuple[int, int]]) -> None:
    for attempt, step in starts:
        axes.axvline(step, color=MARK, linewidth=0.9, linestyle=(0, (3, 3)))
        if len(starts) <= LABELLED_ATTEMPTS_MAX:
            place = {"xytext": (2, 0), "textcoords": "offset points", "va": "top"}
            axes.annotate(
                str(attempt), (step, 1), xycoords=("data", "axes fraction"), color=INK, **place
            )


def _inline(svg: str, title: str) -> str:
    """Make the file an element: no prologue, fixed size or foreign colours, and ids of its own."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", title.lower()) + "--"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    for stand_in, colour in CSS_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg.replace("<svg", '<svg role="img"', 1)
