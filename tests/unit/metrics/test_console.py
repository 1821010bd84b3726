"""Lines of the rank log."""

from pretrain.metrics.console import duration, event_line, record_line


def test_a_record_is_one_line_in_the_order_of_reading():
    values = {
        "train/loss": 3.14159,
        "train/learning_rate": 1e-3,
        "perf/images_per_second": 1234.56,
        "perf/data_wait_fraction": 0.021,
        "train/skipped_steps": 0.0,
    }
    line = record_line(150, values, total_steps=9000, epoch=1.5, eta_seconds=3725)
    assert line == (
        "epoch   1.50  step  150/9000  loss 3.1416  lr 1.00e-03  1,234.6 images/s  wait 2.1%  "
        "eta 1:02:05"
    )


def test_an_evaluation_says_what_it_is():
    values = {
        "eval/loss": 1.0,
        "eval/top1_fraction": 0.8125,
        "eval/top5_fraction": 0.96,
        "eval/images": 50000.0,
    }
    line = record_line(150, values, total_steps=9000, epoch=1.5, eta_seconds=None)
    assert line.endswith("evaluation: loss 1.0000  top-1 81.25%  top-5 96.00%  of 50,000 images")


def test_trouble_is_shown_where_there_is_some():
    values = {"train/skipped_steps": 2.0, "data/bad_samples": 1.0}
    line = record_line(1, values, total_steps=2, epoch=0, eta_seconds=None)
    assert line.endswith("2 skipped steps  1 bad samples")


def test_lines_of_one_kind_align():
    def line(step, rate):
        values = {"train/loss": 2.0, "perf/images_per_second": rate}
        return record_line(step, values, total_steps=1000, epoch=step / 100, eta_seconds=None)

    assert len(line(10, 99.5)) == len(line(1000, 1234.5))


def test_numbers_that_are_not_finite_do_not_break_a_line():
    nan = float("nan")
    values = {"train/loss": nan, "train/grad_norm": float("inf")}
    line = record_line(1, values, total_steps=2, epoch=0, eta_seconds=0)
    assert "loss nan" in line
    assert "grad inf" in line


def test_an_event_is_one_line_whatever_it_holds():
    assert event_line("bad_sample", {"key": "a\nb\x1b[31m"}) == "bad sample: key a b [31m"
    assert event_line("started", {}) == "started"


def test_durations():
    assert duration(0.4) == "0:00"
    assert duration(59.6) == "1:00"
    assert duration(3600) == "1:00:00"
    assert duration(90061) == "1d 1:01:01"
