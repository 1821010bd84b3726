"""The pages as a real browser shows them: light and dark, wide and narrow, without a network."""

import re

import pytest
from browser import CHROMIUM, REASON, look
from recorded_runs import add_checkpoint, add_pictures, fill, make_run

from pretrain.metrics.report.compare import compare_html, read_runs
from pretrain.metrics.report.page import report_html

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=REASON)

LOOKS = [(1280, False), (1280, True), (390, False), (390, True)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Make a page by name, once."""
    folder = tmp_path_factory.mktemp("pages")
    made = {}

    def page_of(name):
        if name not in made:
            path = folder / f"{name}.html"
            path.write_text(MAKERS[name](folder / f"runs_of_{name}"))
            made[name] = path
        return made[name]

    return page_of


def rich(folder):
    run = fill(make_run(folder / "swin_l_22k"), steps=400, attempts=3)
    add_pictures(run)
    add_checkpoint(run, 400, 3_657_600_000)
    return report_html(run)


def begun(folder):
    return report_html(make_run(folder / "a_run_that_has_just_begun_and_has_a_very_long_name"))


def first_record(folder):
    return report_html(fill(make_run(folder / "one"), steps=10, attempts=1, total_steps=400))


def long(folder):
    return report_html(fill(make_run(folder / "long"), steps=31_200, attempts=500, evaluations=90))


def compared(folder):
    names = (
        "a",
        "with_a_name_that_is_longer_than_a_legend_would_like_it_to_be",
        "c",
        "d",
        "e",
        "f",
    )
    runs = [fill(make_run(folder / name), steps=100 + 20 * len(name)) for name in names]
    return compare_html(read_runs([*runs, make_run(folder / "begun")]), "hours")


MAKERS = {
    "rich": rich,
    "begun": begun,
    "first_record": first_record,
    "long": long,
    "compared": compared,
}
CHARTS = {"rich": 20, "begun": 0, "first_record": 15, "long": 20, "compared": 12}
"""Least number of charts."""


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [
        ("rich", 390, True),
        *(
            pytest.param(name, *how, marks=pytest.mark.slow)
            for name in MAKERS
            for how in (LOOKS if name == "rich" else LOOKS[:1] + LOOKS[-1:])
            if (name, *how) != ("rich", 390, True)
        ),
    ],
)
def test_a_page_fits_shows_all_and_asks_for_nothing(pages, tmp_path, name, width, dark):
    seen = look(pages(name), tmp_path, width=width, dark=dark)
    assert seen["console"] == []
    assert seen["faults"] == []
    assert seen["loaded"] == []
    assert seen["width"] == width
    assert seen["scroll"] == width, seen["wide"]
    assert seen["wide"] == []
    assert all(natural > 0 and shown > 0 for natural, shown in seen["images"])
    assert len(seen["images"]) == (1 + 12 * 4 if name == "rich" else 0)
    red = int(re.findall(r"\d+", seen["background"])[0])
    assert (red < 60) if dark else (red > 200)
    assert len(seen["charts"]) >= CHARTS[name]
    for chart in seen["charts"]:
        assert chart["ink"] > 0, chart
        assert chart["clipped"] == [], chart
        assert re.match(r"(step|hours) [\d,.]+\n", chart["read"]), chart
        assert chart["inside"], chart
        assert chart["gone"], chart
        assert chart["width"] <= width
