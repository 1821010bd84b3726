"""The report of a run: complete, self-contained, and never tripped by what is missing."""

import json
import re
from html.parser import HTMLParser

import pytest
from recorded_runs import add_checkpoint, add_pictures, fill, make_run

from pretrain.metrics.jsonl import LineWriter
from pretrain.metrics.report.page import report_html
from pretrain.metrics.report.tables import ATTEMPTS_MAX, EVENTS_PER_KIND_MAX

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
        if not self.open or self.open[-1] not in ("style", "script"):
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
        json.dumps({"state": "done", "step": 200, "total_steps": 200, "epoch": 8, "attempt": 2})
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
    monkeypatch.setattr("pretrain.metrics.report.curves.figure", lambda *_: "<svg></svg>")


@pytest.mark.usefixtures("no_drawing")
def test_the_headline_is_the_run(finished):
    page = parse(report_html(finished))
    for part in (
        "tiny done",
        "top-1 75.00% best 81.25%, step 100",
        "loss 0.2500 training, step 200",
        "steps 200 of 200, 8.00 epochs",
        "images seen 12,800",
        "wall time 24:00 in 2 attempts",
        "throughput 1,234 images/s, median",
    ):
        assert part in page.text, part


@pytest.mark.usefixtures("no_drawing")
def test_a_probe_has_its_own_tile_and_table(finished):
    measured = {"top1_fraction": 0.25, "top5_fraction": 0.5, "loss": 3.5, "images": 40}
    with LineWriter(finished.metrics_path) as metrics:
        of_probe = {f"eval/probe_{name}": value for name, value in measured.items()}
        metrics.append({"step": 200, "time": 2300.0, "attempt": 2, **of_probe})
    page = parse(report_html(finished))
    assert "probe top-1 25.00% best 25.00%, step 200" in page.text
    assert "Evaluations of the probe step top-1 top-5 loss images 200 25.00% 50.00%" in page.text
    assert "top-1 75.00% best 81.25%, step 100" in page.text


@pytest.mark.usefixtures("no_drawing")
def test_tables_hold_evaluations_attempts_and_events(finished):
    page = parse(report_html(finished))
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
    assert "tiny done" in page.text


def test_all_is_drawn_and_nothing_is_loaded_from_anywhere(finished):
    add_pictures(finished, classes=2, examples=1)
    page = report_html(finished)
    tags = parse(page).tags
    assert sum(tag == "svg" for tag, _ in tags) == 4
    assert "where a later attempt took over" in page
    for tag, attributes in tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action"):
                assert value.startswith("data:image/" if tag == "img" else "#")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page
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


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A run of many devices with all that a directory may hold."""
    run = fill(make_run(tmp_path_factory.mktemp("runs") / "rich"), steps=400, attempts=3)
    add_pictures(run, classes=3, examples=2)
    for step in (300, 400):
        add_checkpoint(run, step, 3_657_600_000)
    run.failure_path.write_text("failed: a rank died\nculprit: <rank 17>\n")
    return run


@pytest.fixture
def rich_page(rich, no_drawing):
    return parse(report_html(rich))


def test_what_needs_looking_at_stands_first(rich_page):
    text = rich_page.text
    assert "The run was given up failed: a rank died culprit: <rank 17>" in text
    assert text.index("The run was given up") < text.index("Alerts") < text.index("peak memory")
    assert "slow data 31 % of the training time was spent waiting for data" in text


def test_average_and_raw_weights_have_their_columns_and_tiles(rich_page):
    assert "top-1, average" in rich_page.text
    head = "step top-1 top-5 loss average top-1 average top-5 average loss images 400 37.74% "
    assert rich_page.text.count(f"Evaluations {head}") == 1
    assert "probe, average 80.45%" in rich_page.text


def test_classes_are_shown_by_name_with_pictures(rich_page):
    text = rich_page.text
    assert "218,410 images of 21,841 classes, step 2,000, the averaged weights" in text
    assert "maillot n03710637 top-1 2.00% top-5 6.00%, 50 images 8 as screen n04152593" in text
    assert "sunglass n04355933 maillot n03710637 40 of 50" in text
    pictures = [attributes["alt"] for tag, attributes in rich_page.tags if tag == "img"]
    assert pictures.count("sunglass taken for maillot") == 1
    assert len(pictures) == 1 + 3 * 2


def test_only_the_runs_own_examples_are_shown(rich, tmp_path, no_drawing):
    told = json.loads(rich.by_class_path.read_text())
    (rich.path / "other.jpg").write_bytes((rich.examples_dir / "0_0.jpg").read_bytes())
    files = ["other.jpg", "examples/../other.jpg", "/etc/hostname", "examples/none.jpg", ""]
    for file in files:
        example = {"file": file, "taken_for": {"id": "n1", "name": "x"}}
        told["worst"] = [told["worst"][0] | {"examples": [example]}]
        other = make_run(tmp_path / (str(files.index(file)) + "run"))
        other.by_class_path.write_text(json.dumps(told))
        (other.path / "other.jpg").write_bytes((rich.path / "other.jpg").read_bytes())
        page = parse(report_html(other))
        assert "sunglass" in page.text
        assert not [tag for tag, _ in page.tags if tag == "img"]


def test_the_plan_is_held_against_what_came(rich_page):
    text = rich_page.text
    assert "images per second 7,300 7,4" in text
    assert "memory of a rank 49.28 GiB 61.30 GiB 1.24" in text
    assert "newest checkpoint 3.41 GiB 3.41 GiB 1.00" in text
    assert "checkpoints, 2 of 4 13.63 GiB 6.81 GiB 0.50" in text
    assert "The plan assumed: each GPU sustains 109 TFLOP/s" in text


def test_the_time_is_accounted_for(rich_page):
    assert re.search(r"rank zero's time h:mm:ss hours share compute 3:07 0.05", rich_page.text)
    assert (
        "in no record: starting, ending, and steps that had to be trained again" in rich_page.text
    )


def test_the_environment_and_the_commands_are_told(rich_page):
    text = rich_page.text
    assert "packages torch 2.8.0, deepspeed 0.19.8" in text
    assert "from commit 2b56e51d4c1a launch/slurm.py --config rich" in text
    assert "python -m pretrain.metrics report " in text


@pytest.mark.usefixtures("no_drawing")
def test_hundreds_of_attempts_stay_readable(run):
    lines = []
    for number in range(1, 501):
        lines.append({"event": "start", "attempt": number, "time": 1000.0 * number})
        end = {"event": "end", "attempt": number, "time": 1000.0 * number + 60}
        lines.append({**end, "outcome": "crashed", "reason": f"reason-{number}."})
    run.attempts_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = parse(report_html(run)).text
    assert f"{500 - ATTEMPTS_MAX} attempts between are in attempts.jsonl." in text
    assert "How they ended: 500 crashed." in text
    assert "reason-1." in text and "reason-500." in text
    assert "reason-2." not in text
    assert "wall time 8:20:00 in 500 attempts" in text


@pytest.mark.usefixtures("no_drawing")
def test_a_finding_of_the_next_attempt_prolongs_no_life(finished):
    late = {"time": 90_000.0, "attempt": 1, "event": "attempt_explained", "cause": "node_lost"}
    with LineWriter(finished.events_path) as events:
        events.append(late)
    assert "wall time 24:00 in 2 attempts" in parse(report_html(finished)).text


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    "by_class",
    [{"worst": 3}, {"worst": [None]}, {"confused": [{}]}, {"images": "many", "worst": [{}]}],
)
def test_a_part_that_holds_something_else_costs_itself_only(finished, by_class):
    finished.by_class_path.write_text(json.dumps(by_class))
    text = parse(report_html(finished)).text
    assert "This part could not be made of what the files hold" in text
    assert "top-1 75.00%" in text
