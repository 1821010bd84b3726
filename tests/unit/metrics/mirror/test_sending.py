"""Every step is one row, and what wandb has is not sent again."""

from pathlib import Path

import pytest

from pretrain.metrics.mirror.files import WandbFile
from pretrain.metrics.mirror.sending import Rows, Sent, alert_text, sent_by


def record(*steps):
    return [{"step": step, "time": 1.0, f"train/{n}": n} for n, step in enumerate(steps)]


def rows_of(sent, lines, *, orderly=True):
    rows = Rows(sent, 8)
    made = [rows.add(line) for line in lines] + ([rows.end()] if orderly else [])
    return [row for row in made if row]


def test_the_lines_of_a_step_are_one_row_with_both_axes():
    assert rows_of(Sent(), record(10, 20, 20)) == [
        {"global_step": 10, "samples": 80, "train/0": 0},
        {"global_step": 20, "samples": 160, "train/1": 1, "train/2": 2},
    ]


def test_a_step_that_may_not_be_all_there_waits():
    assert [row["global_step"] for row in rows_of(Sent(), record(10, 20), orderly=False)] == [10]


@pytest.mark.parametrize("sent_steps", [(), (10,), (10, 20), (10, 20, 30)])
def test_only_what_is_in_no_file_is_sent(sent_steps):
    lines = record(10, 20, 20, 30)
    everything = rows_of(Sent(), lines)
    files = [
        WandbFile(Path(str(row["global_step"])), rows=[row])
        for row in everything
        if row["global_step"] in sent_steps
    ]
    for ordered in (files, files[::-1]):
        assert rows_of(sent_by(ordered), lines) == everything[len(sent_steps) :]


def test_of_a_step_that_was_sent_in_part_the_rest_follows():
    sent = sent_by([WandbFile(Path("a"), rows=[{"global_step": 20, "samples": 160, "train/1": 1}])])
    assert rows_of(sent, record(10, 20, 20, 30)) == [
        {"global_step": 20, "samples": 160, "train/2": 2},
        {"global_step": 30, "samples": 240, "train/3": 3},
    ]


def test_after_the_record_is_cut_back_only_steps_beyond_are_sent():
    sent = Sent()
    rows = Rows(sent, 8)
    first = [rows.add({"step": step, "train/loss": 1.0}) for step in (10, 20, 30)]
    assert [row["global_step"] for row in first if row] == [10, 20]
    rows.forget()  # 30 was not sent, and never will be: it is trained again
    again = [rows.add({"step": step, "train/loss": 2.0}) for step in (10, 20, 30, 40)]
    assert [row for row in again if row] == [
        {"global_step": 30, "samples": 240, "train/loss": 2.0},
    ]


def test_alerts_of_one_text_differ_by_their_moment():
    texts = {alert_text({"text": "a", "attempt": 1, "time": 1e9 + tenth / 10}) for tenth in (0, 1)}
    assert texts == {
        "a\nattempt 1, 2001-09-09 01:46:40.000+00:00",
        "a\nattempt 1, 2001-09-09 01:46:40.100+00:00",
    }
