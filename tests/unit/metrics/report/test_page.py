"""The report of a run: complete, self-contained, and never tripped by what is missing."""

import json
import re
from html.parser import HTMLParser

import pytest

from pretrain.metrics.jsonl import LineWriter
from pretrain.metrics.report.page import EVENTS_PER_KIND_MAX, report_html, write_report

VOID = {"meta", "br", "link", "img", "path", "use"}


class Checker(HTMLParser):
    """Collects text and complains about tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data + " "


def parse(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    checker.text = " ".join(checker.text.split())
    return checker


@pytest.fixture
def finished(run):
    with LineWriter(run.metrics_path) as metrics, LineWriter(run.events_path) as events:
        for number in range(1, 21):
            attempt = 1 if number <= 10 else 2
            stamp = {"step": number * 10, "time": 1000.0 + 60 * number, "attempt": attempt}
            metrics.append(
                {
                    **stamp,
                    "train/loss": 5 / number,
                    "perf/images_per_second": 1234.0,
                    "data/samples_consumed": number * 640,
                }
            )
        accuracy = {"eval/top1_fraction": 0.8125, "eval/top5_fraction": 0.96, "eval/images": 500}
        metrics.append({"step": 100, "time": 1700.0, "attempt": 1, **accuracy, "eval/loss": 0.5})
        accuracy["eval/top1_fraction"] = 0.75
        metrics.append({"step": 200, "time": 2300.0, "attempt": 2, **accuracy, "eval/loss": None})
        for number in range(EVENTS_PER_KIND_MAX + 7):
            events.append(
                {"time": 1500.0, "attempt": 1, "event": "bad_sample", "key": f"<b>{number}</b>"}
            )
    run.progress_path.write_text(
        json.dumps({"state": "saving", "step": 200, "total_steps": 200, "epoch": 8, "attempt": 2})
    )
    run.environment_path.write_text(json.dumps({"command": ["python", "-m", "x", "a b"]}))
    run.attempts_path.write_text(
        '{"event": "start", "attempt": 1, "time": 900}\n'
        '{"event": "end", "attempt": 1, "time": 1700, "outcome": "crashed", "reason": "rank 1"}\n'
    )
    return run


@pytest.fixture
def no_drawing(monkeypatch):
    """Leave out the slow part where it is not looked at."""
    monkeypatch.setattr("pretrain.metrics.report.curves.draw", lambda *_: "<svg></svg>")


@pytest.mark.usefixtures("no_drawing")
def test_the_headline_is_the_run(finished):
    page = parse(report_html(finished, state="done"))
    for part in (
        "tiny done",
        "top-1 75.00% best 81.25%, step 100",
        "steps 200 of 200, 8.00 epochs",
        "images seen 12,800",
        "wall time 21:20 in 2 attempts",
        "throughput 1,234 images/s, median",
    ):
        assert part in page.text, part


@pytest.mark.usefixtures("no_drawing")
def test_a_probe_has_its_own_tile_and_table(finished):
    measured = {"top1_fraction": 0.25, "top5_fraction": 0.5, "loss": 3.5, "images": 40}
    with LineWriter(finished.metrics_path) as metrics:
        of_probe = {f"eval/probe_{name}": value for name, value in measured.items()}
        metrics.append({"step": 200, "time": 2300.0, "attempt": 2, **of_probe})
    page = parse(report_html(finished, state="done"))
    assert "probe top-1 25.00% best 25.00%, step 200" in page.text
    assert "Evaluations of the probe step top-1 top-5 loss images 200 25.00% 50.00%" in page.text
    assert "top-1 75.00% best 81.25%, step 100" in page.text


@pytest.mark.usefixtures("no_drawing")
def test_tables_hold_evaluations_attempts_and_events(finished):
    page = parse(report_html(finished, state="done"))
    assert "100 81.25% 96.00% 0.5000 500" in page.text
    assert "200 75.00% 96.00% not finite 500" in page.text
    assert "crashed rank 1" in page.text
    assert "110 to 200 done" in page.text
    assert "7 older “bad_sample”" in page.text
    assert "key <b>56</b>" in page.text, "escaped, and the newest are shown"
    assert "key <b>6</b>" not in page.text


@pytest.mark.usefixtures("no_drawing")
def test_config_and_command_are_there(finished):
    page = parse(report_html(finished))
    assert "python -m x 'a b'" in page.text
    assert "variant: swin_t" in page.text
    assert "Cross-entropy against the mixed and smoothed targets." in page.text
    assert "tiny saving" in page.text


def test_all_is_drawn_and_nothing_is_loaded_from_anywhere(finished):
    page = report_html(finished)
    tags = parse(page).tags
    assert sum(tag == "svg" for tag, _ in tags) == 3
    assert "where a later attempt took over" in page
    for _, attributes in tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action"):
                assert value.startswith("#")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "<script" not in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_an_empty_run_has_a_report(run):
    page = parse(report_html(run))
    assert "Nothing was recorded yet." in page.text
    assert "tiny not started" in page.text
    assert f"--config {run.config_path} --name tiny-again" in page.text


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"[]", b'{"state": ', b"null\n{}\n"])
def test_damaged_files_cost_their_section_only(finished, damage):
    for path in (
        finished.progress_path,
        finished.environment_path,
        finished.attempts_path,
        finished.plan_path,
        finished.events_path,
    ):
        path.write_bytes(damage)
    with finished.metrics_path.open("ab") as file:
        file.write(damage)
    assert "top-1 75.00%" in parse(report_html(finished)).text


@pytest.mark.usefixtures("no_drawing")
def test_writing_replaces_the_old_report_whole(finished):
    assert write_report(finished) == finished.report_path
    first = finished.report_path.read_text()
    write_report(finished, state="done")
    second = finished.report_path.read_text()
    assert second != first
    assert second.startswith("<!doctype html>")
    assert not list(finished.path.glob("report*.tmp"))
