"""Runs side by side: shared axes, results, and what differs."""

import json
import re

import pytest
from recorded_runs import fill, make_run

from pretrain.errors import LaunchError
from pretrain.metrics.__main__ import main
from pretrain.metrics.report import compare as compare_module
from pretrain.metrics.report.compare import compare_html, config_differences, read_runs, results


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Unequal lengths, one without evaluation, one that has just begun."""
    folder = tmp_path_factory.mktemp("runs")
    long = fill(make_run(folder / "long"), steps=200, attempts=2, evaluations=2, state="done")
    other = {"optim": {"lr": 0.002}, "ema": {}}
    short = make_run(folder / "short", **other)
    fill(short, steps=100, attempts=1, evaluations=0, speed=2.0, total_steps=200)
    environment = json.loads(short.environment_path.read_text())
    environment["packages"]["torch"] = "2.9.0"
    short.environment_path.write_text(json.dumps(environment))
    return [long, short, make_run(folder / "begun", seed=3)]


@pytest.fixture
def drawn(monkeypatch):
    """Keep the charts instead of drawing them."""
    charts = {}

    def keep(chart, marks):
        charts[chart.title] = (chart, marks)
        return "<svg></svg>"

    monkeypatch.setattr("pretrain.metrics.report.curves.figure", keep)
    return charts


def test_only_what_differs_is_told(runs):
    found = dict(config_differences(read_runs(runs)))
    assert found["optim.lr"] == ["0.001", "0.002", "0.001"]
    assert found["ema.decay"] == ["0.9999", "null", "0.9999"]
    assert found["seed"] == ["0", "0", "3"]
    assert len(found) == 3, "names and what is the same are left out"


def test_a_field_that_one_version_does_not_know_is_told(runs):
    facts = read_runs(runs[:2])
    text = runs[0].config_path.read_text()
    runs[0].config_path.write_text(text + "new_field: 7\n")
    try:
        assert dict(config_differences(facts))["new_field"] == ["7", "-"]
    finally:
        runs[0].config_path.write_text(text)


def test_results_stand_side_by_side(runs):
    found = dict(results(read_runs(runs)))
    assert found["state"] == ["done", "training", "not started"]
    assert found["steps"] == ["200 of 200", "100 of 200", ""]
    assert found["top-1, best"] == ["37.74% at 200", "", ""]
    assert found["top-1 of the average, newest"] == ["40.72%", "", ""]
    assert [bool(text) for text in found["GPU-hours"]] == [True, True, False]


@pytest.mark.parametrize("by", ["step", "samples", "hours"])
def test_curves_share_an_axis_and_runs_keep_their_colour(runs, drawn, by):
    page = compare_html(read_runs(runs), by)
    loss, marks = drawn["Training loss"]
    assert [line.label for line in loss.lines] == ["long", "short"]
    assert loss.axis == by
    ends = [float(line.x[-1]) for line in loss.lines]
    assert marks.last == max(ends)
    if by == "step":
        assert ends == [200, 100]
    elif by == "samples":
        assert ends == [200 * 4096, 100 * 4096]
    else:
        assert ends[0] > 2 * ends[1] > 0, "half the steps at twice the speed"
    accuracy, _ = drawn["Top-1"]
    assert accuracy.colours == loss.colours[:1] == (0,)
    assert "Nothing recorded yet: begun" in page


def test_the_page_is_whole_with_many_runs(runs, tmp_path):
    more = [make_run(tmp_path / f"r{number}") for number in range(9)]
    for number, run in enumerate(more):
        line = {"step": 10, "time": 1.0, "attempt": 1, "train/loss": float(number)}
        run.metrics_path.write_text(json.dumps(line) + "\n")
    page = compare_html(read_runs([*more, runs[2]]), "step")
    assert page.startswith("<!doctype html>")
    assert "10 runs compared" in page
    svg = re.search(r"<svg.*?</svg>", page, re.DOTALL)[0]
    assert all(f"var(--series-{number})" in svg for number in range(1, 9))
    assert "dash-1" in page, "more runs than colours"
    assert "url(http" not in page and 'src="' not in page


def test_runs_without_differences_say_so(tmp_path, drawn):
    runs = [fill(make_run(tmp_path / name), steps=20) for name in ("one", "two")]
    page = compare_html(read_runs(runs), "step")
    assert page.count("There are none.") == 2


def test_the_command_prints_what_differs_and_writes_the_page(runs, tmp_path, capsys, drawn):
    names = [str(run.path) for run in runs]
    assert main(["compare", *names, "--out", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^optim.lr +0.001 +0.002 +0.001 *$", printed, re.MULTILINE)
    assert re.search(r"^packages.torch +2.8.0 +2.9.0 +2.8.0 *$", printed, re.MULTILINE)
    assert re.search(r"^state +done +training +not started *$", printed, re.MULTILINE)
    assert printed.splitlines()[-1] == str(tmp_path / "page.html")
    assert "3 runs compared" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        (lambda runs: [runs[0]], "compare: expected two runs or more, got 1"),
        (lambda runs: [runs[0], runs[1], runs[0]], "RUN long: given twice; name each run once"),
    ],
)
def test_runs_that_cannot_be_compared_are_one_line(runs, choose, said):
    with pytest.raises(LaunchError, match=re.escape(said)):
        read_runs(choose(runs))


def test_a_damaged_config_is_one_line(runs, tmp_path):
    other = make_run(tmp_path / "damaged")
    other.config_path.write_text("a: [")
    with pytest.raises(LaunchError, match=r"config.yaml: is damaged; leave this run out"):
        compare_module.config_differences(read_runs([runs[0], other]))


def test_bad_input_writes_nothing(runs, tmp_path):
    options = ["--runs-dir", str(runs[0].path.parent), "--out", str(tmp_path / "page.html")]
    with pytest.raises(LaunchError, match="RUN nobody: no such run in "):
        main(["compare", str(runs[0].path), "nobody", *options])
    assert not (tmp_path / "page.html").exists()


def test_a_place_that_cannot_be_written_is_one_line(runs, tmp_path, drawn):
    names = [str(run.path) for run in runs]
    with pytest.raises(LaunchError, match=r"--out .*: cannot be written: No such file"):
        main(["compare", *names, "--out", str(tmp_path / "nowhere" / "page.html")])
