"""Charts are drawn from the record alone and take nothing from outside the page."""

import html
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from recorded_runs import fill, make_run

from pretrain.metrics.report.charts import charts, marks
from pretrain.metrics.report.curves import (
    CSS_COLOURS,
    SERIES,
    Chart,
    Line,
    Marks,
    binned,
    figure,
    stacked_shares,
)
from pretrain.metrics.report.facts import read_facts

CHART = Chart("Loss", (Line("training", [10, 20, 30], [3.0, 2.0, 1.0]),))


def svg_of(text):
    return re.search(r"<svg.*</svg>", text, re.DOTALL)[0]


def data_of(text):
    return json.loads(html.unescape(re.search(r'data-chart="([^"]*)"', text)[1]))


def record(run, *lines):
    run.metrics_path.write_text("".join(json.dumps({"time": 1.0, **line}) + "\n" for line in lines))
    return read_facts(run)


def titles(facts):
    return [chart.title for group in charts(facts).values() for chart in group]


def test_only_what_was_recorded_is_drawn(tmp_path):
    run = make_run(tmp_path / "run")
    losses = [{"step": 10 * number, "train/loss": 5.0 / number} for number in range(1, 20)]
    assert titles(record(run)) == []
    assert titles(record(run, *losses)) == ["Loss"]
    evaluated = {"step": 190, "eval/loss": 1.0, "eval/top1_fraction": 0.5, "eval/images": 10}
    facts = record(run, *losses, evaluated)
    assert titles(facts) == ["Loss", "Accuracy"]
    loss, accuracy = charts(facts)["Loss and accuracy"]
    assert [line.label for line in loss.lines] == ["training", "evaluation"]
    assert list(accuracy.lines[0].values) == [0.5]
    assert list(marks(facts).evaluations) == [190]


def test_everything_that_is_recorded_has_its_curve(tmp_path):
    shown = titles(read_facts(fill(make_run(tmp_path / "run"), steps=200)))
    for title in (
        "Loss",
        "Accuracy",
        "Accuracy of the probe",
        "Learning rate",
        "Weight decay",
        "Gradient norm before clipping",
        "Update over weight, by stage",
        "Activation, RMS by stage",
        "Activation, largest by stage",
        "Loss scale",
        "Where the time goes",
        "Images per second",
        "Images per second of one device",
        "FLOP utilisation",
        "Peak memory, GiB",
        "Images seen",
    ):
        assert title in shown


@pytest.mark.parametrize("value", [None, "text", [1], float("nan"), float("inf")])
def test_what_is_no_number_leaves_a_gap_not_a_zero(tmp_path, value):
    lines = ({"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": value})
    facts = record(make_run(tmp_path / "run"), *lines)
    assert facts.series["train/loss"].steps.tolist() == [1]


@pytest.mark.parametrize("percent", [True, False])
def test_a_drawing_is_well_formed_scalable_and_coloured_by_the_page(percent):
    lines = tuple(Line(f"a<{number}", [1, 2, 3], [0.1, 0.2, 0.3]) for number in range(9))
    marked = Marks(3, [(2, 2)], [2])
    text = figure(Chart("Title & <more>", lines, percent=percent), marked)
    element = ElementTree.fromstring(text)
    svg = element.find("{http://www.w3.org/2000/svg}svg")
    assert svg.get("viewBox")
    assert svg.get("width") is None
    assert svg.get("height") is None
    assert svg.get("aria-label") == "Title & <more>"
    assert not re.search(r"#0\d0\d0\d", text)
    for variable in CSS_COLOURS.values():
        assert variable in text
    assert "a<8" in "".join(element.itertext()), "more lines than colours"
    assert ("%" in "".join(svg.itertext())) == percent


def test_drawings_on_one_page_share_no_ids():
    other = Chart("Images per second", CHART.lines)
    made = [svg_of(figure(chart, Marks(30))) for chart in (CHART, other)]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in made]
    assert ids[0] and ids[1]
    assert not ids[0] & ids[1]
    for svg, own in zip(made, ids, strict=True):
        used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
        assert used <= own


def test_drawing_is_deterministic():
    marked = Marks(190, [(2, 50)])
    assert figure(CHART, marked) == figure(CHART, marked)


def test_the_read_out_has_the_numbers_and_where_the_axes_lie():
    data = data_of(figure(CHART, Marks(40)))
    assert data["x"] == [0, 40]
    assert data["lines"][0]["at"] == [10, 20, 30]
    assert data["lines"][0]["y"] == [3.0, 2.0, 1.0]
    left, right, top, bottom = data["box"]
    assert 0 < left < right < 4.6 * 72
    assert 0 < top < bottom < 2.3 * 72


def test_a_wide_range_is_logarithmic_only_where_it_may_be():
    line = Line("", [1, 2, 3], [1e-6, 1e-4, 1e-1])
    log = svg_of(figure(Chart("norm", (line,), log_if_wide=True), Marks(3)))
    assert "1e-5" in log
    assert "1e-5" not in svg_of(figure(Chart("norm", (line,)), Marks(3)))
    zero = Line("", [1, 2, 3], [0.0, 1e-4, 1e-1])
    assert "1e-5" not in svg_of(figure(Chart("norm", (zero,), log_if_wide=True), Marks(3)))


def test_attempts_that_began_close_together_share_a_label():
    attempts = [(12, 50.0), (13, 50.0), (14, 51.0), (15, 150.0)]
    svg = svg_of(figure(CHART, Marks(200, attempts)))
    texts = [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    assert "12 to 14" in texts
    assert "15" in texts
    assert "13" not in texts


def test_hundreds_of_attempts_and_evaluations_keep_a_chart_small():
    attempts = [(number, 600.0 * number) for number in range(2, 500)]
    evaluations = [300.0 * number for number in range(1000)]
    marked = figure(CHART, Marks(300_000, attempts, evaluations))
    assert len(marked) < len(figure(CHART, Marks(300_000))) + 50_000


def test_shares_of_time_add_up():
    steps = np.arange(10, 20_010, 10)
    parts = [("a", np.full(2000, 3.0)), ("b", np.full(2000, 1.0))]
    first, second = stacked_shares(steps, parts, bins_max=50)
    assert len(first.x) == 50
    assert first.x[-1] == 20_000
    assert np.allclose(first.values, 0.75)
    assert np.allclose(second.values, 0.25)
    svg = svg_of(figure(Chart("split", (first, second), percent=True, stacked=True), Marks(20_000)))
    assert "var(--series-1)" in svg and "var(--series-2)" in svg


def test_long_series_keep_their_extremes():
    steps = list(range(10_000))
    values = np.sin(np.arange(10_000) / 500)
    values[777] = 40.0
    x, mean, low, high = binned(steps, list(values), points_max=100)
    assert len(x) == len(mean) == len(low) == len(high) == 100
    assert high.max() == 40.0
    assert low.min() == pytest.approx(-1, abs=1e-3)
    assert (low <= mean).all() and (mean <= high).all()
    assert mean.mean() == pytest.approx(values.mean())


def test_short_series_are_drawn_point_by_point():
    x, mean, low, high = binned([3, 5], [1.0, 2.0])
    assert list(x) == [3, 5]
    assert list(mean) == list(low) == list(high) == [1.0, 2.0]


def test_the_colours_can_be_told_apart_by_number():
    assert len(set(SERIES)) == len(SERIES) == 8
