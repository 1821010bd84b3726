"""Charts are drawn from the record alone and take nothing from outside the page."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pretrain.metrics.report.curves import CSS_COLOURS, Chart, Line, binned, charts, draw

RECORDS = [
    {"step": 10 * number, "train/loss": 5.0 / number, "perf/images_per_second": 100.0}
    for number in range(1, 20)
]


def test_only_what_was_recorded_is_drawn():
    evaluated = [*RECORDS, {"step": 190, "eval/loss": 1.0, "eval/top1_fraction": 0.5}]
    assert [chart.title for chart in charts(RECORDS)] == ["Loss", "Images per second"]
    drawn = {chart.title: chart for chart in charts(evaluated)}
    assert [line.label for line in drawn["Loss"].lines] == ["training", "evaluation"]
    assert list(drawn["Accuracy"].lines[0].values) == [0.5]
    assert charts([]) == []


def test_a_record_without_a_number_leaves_a_gap_not_a_zero():
    (chart,) = charts([{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": None}])
    assert list(chart.lines[0].steps) == [1]


@pytest.mark.parametrize("percent", [True, False])
def test_a_drawing_is_well_formed_scalable_and_coloured_by_the_page(percent):
    lines = (Line("a<b", [1, 2, 3], [0.1, 0.2, 0.3]), Line("c", [1, 3], [0.5, 0.25]))
    svg = draw(Chart("Title & <more>", lines, percent=percent), 3, [(2, 2)])
    element = ElementTree.fromstring(svg)
    assert element.get("viewBox")
    assert element.get("width") is None
    assert element.get("height") is None
    assert not re.search(r"#0\d0\d0\d", svg)
    for variable in CSS_COLOURS.values():
        assert variable in svg
    text = "".join(element.itertext())
    assert "a<b" in text
    assert ("%" in text) == percent


def test_drawings_on_one_page_share_no_ids():
    made = [draw(chart, 190, []) for chart in charts(RECORDS)]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in made]
    assert ids[0] and ids[1]
    assert not ids[0] & ids[1]
    for svg, own in zip(made, ids, strict=True):
        used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
        assert used <= own


def test_drawing_is_deterministic():
    chart = charts(RECORDS)[0]
    assert draw(chart, 190, [(2, 50)]) == draw(chart, 190, [(2, 50)])


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
