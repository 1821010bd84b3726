"""How far a run is, in words and bars."""

import time
from typing import Any

import pytest

from launch.look_after.view import bar, packed, progress_line, view

NOON = time.mktime((2026, 3, 2, 12, 0, 0, 0, 0, -1))
PROGRESS: dict[str, Any] = {
    "state": "training",
    "step": 1200,
    "total_steps": 4800,
    "images_per_second": 1234.5,
    "loss": 6.25,
    "eta_seconds": 3725.4,
    "time": NOON,
}
MORE = {
    "epochs": 10.0,
    "steps_per_epoch": 480,
    "accuracy_fraction": 0.1234,
    "images_per_second_per_device": 617.25,
    "data_wait_fraction": 0.021,
    "eval_top1_fraction": 0.5,
    "probe_top1_fraction": 0.25,
}


def text_of(progress: dict[str, Any], columns: int = 100) -> list[str]:
    rows = view("first", progress, now=NOON, columns=columns)
    return ["".join(text for text, _ in row) for row in rows]


def test_a_line_says_what_is_known_and_nothing_else() -> None:
    assert progress_line("first", PROGRESS, now=NOON) == (
        "first training step 1,200/4,800 (25.0 %) | loss 6.25 | 1,234 images/s | "
        "time left 1:02:05, ends 13:02"
    )
    assert progress_line("first", PROGRESS | MORE, now=NOON) == (
        "first training step 1,200/4,800 (25.0 %) | epoch 3/10 | loss 6.25 | accuracy 12.3 % | "
        "top-1 50.00 % | probe top-1 25.00 % | 1,234 images/s (617 per device) | data wait 2.1 % | "
        "time left 1:02:05, ends 13:02"
    )
    starting = {"state": "starting", "step": 0, "total_steps": 4800, "eta_seconds": None}
    assert progress_line("first", starting, now=NOON) == (
        "first starting step 0/4,800 (0.0 %) | time left unknown"
    )
    assert progress_line("first", {"state": "starting"}, now=NOON) == (
        "first starting | time left unknown"
    )


def test_what_was_said_some_time_ago_has_less_time_left() -> None:
    line = progress_line("first", PROGRESS, now=NOON + 90)
    assert line.endswith("time left 1:00:35, ends 13:02 | no news for 90 s")
    assert "time left 0:00:00" in progress_line("first", PROGRESS, now=NOON + 9000)


@pytest.mark.parametrize(
    ("left", "ends"),
    [(3600, "13:00"), (86400, "Tue 12:00"), (30 * 86400, "01 Apr")],
)
def test_an_end_on_another_day_has_its_day(left: float, ends: str) -> None:
    assert f"ends {ends}" in progress_line("first", PROGRESS | {"eta_seconds": left}, now=NOON)


@pytest.mark.parametrize(
    ("step", "state", "epoch"),
    [
        (0, "starting", "epoch 1/10 0 %"),
        (479, "training", "epoch 1/10 100 %"),
        (480, "training", "epoch 2/10 0 %"),
        (480, "evaluating", "epoch 1/10 100 %"),
        (480, "saving", "epoch 1/10 100 %"),
        (4800, "training", "epoch 10/10 100 %"),
        (4800, "done", "epoch 10/10 100 %"),
    ],
)
def test_an_epoch_ends_with_what_follows_it(step: int, state: str, epoch: str) -> None:
    rows = text_of(PROGRESS | MORE | {"step": step, "state": state}, columns=49)
    assert any(row.startswith(f"{epoch} | run ") for row in rows)


def test_an_evaluation_says_how_far_it_is() -> None:
    progress = PROGRESS | {"state": "evaluating", "evaluated_fraction": 0.374}
    assert text_of(progress)[0].startswith("first: evaluating 37 % | time left")


def test_a_run_without_epochs_has_one_bar_and_one_without_steps_none() -> None:
    assert [row[:4] for row in text_of(PROGRESS)] == ["firs", "run ", "loss"]
    assert text_of({"state": "starting"}) == ["first: starting | time left unknown"]


@pytest.mark.parametrize("columns", range(1, 160, 3))
def test_no_row_is_wider_than_it_may_be(columns: int) -> None:
    rows = text_of(PROGRESS | MORE, columns)
    assert max(map(len, rows)) <= columns
    assert len(rows) <= 7


def test_a_bar_is_as_long_as_what_is_done() -> None:
    assert ["".join(bar(share, 4)) for share in (-1, 0, 0.2, 0.25, 0.6, 0.99, 1, 2)] == [
        "────", "────", "╸───", "━───", "━━──", "━━━╸", "━━━━", "━━━━",
    ]  # fmt: skip
    assert bar(0.5, 4, ascii_only=True) == ("##", "--")


def test_parts_share_rows_where_they_fit() -> None:
    assert packed(["12345", "12", "1234567", "1"], 10) == ["12345 | 12", "1234567", "1"]
