"""The view of a run in real terminals of several sizes, kinds and wishes."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from fabricated import add_progress, make_run
from terminal import COLOURS, Terminal

from launch.look_after.screen import Lines
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import run_lock

MEASURED = {
    "step": 300,
    "epoch": 3.0,
    "epochs": 10.0,
    "steps_per_epoch": 100,
    "images_per_second": 1600.0,
    "images_per_second_per_device": 800.0,
    "data_wait_fraction": 0.021,
    "loss": 1.25,
    "accuracy_fraction": 0.425,
    "eval_top1_fraction": 0.5,
    "probe_top1_fraction": 0.25,
    "eta_seconds": 90000.0,
    "attempt": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDirectory]:
    """A run that goes on: this process has its lock."""
    run = make_run(tmp_path_factory.mktemp("runs"))
    add_progress(run, **MEASURED)
    with run_lock(run, "7") as ours:
        assert ours
        yield run


@contextmanager
def following(run: RunDirectory, columns: int, **environment: str) -> Iterator[Terminal]:
    command = [sys.executable, "launch/runs.py", "follow", "--watch-only", str(run.path)]
    with closing(Terminal(command, columns, **environment)) as terminal:
        yield terminal


def shown(terminal: Terminal) -> list[str]:
    """The rows of the view itself, once they are all there."""
    rows = terminal.wait(lambda text: "data wait" in text)
    first = max(index for index, row in enumerate(rows) if row.startswith("first: training"))
    return rows[first:]


def test_a_wide_terminal_shows_bars_and_every_number(run: RunDirectory) -> None:
    with following(run, 120) as terminal:
        head, epoch, whole, numbers = shown(terminal)
        assert head.startswith("first: training | time left 1 d 0")
        assert ", ends " in head
        assert epoch.startswith("epoch 4/10 ──────")
        assert epoch.endswith("    0/100   0.0 %")
        assert whole.startswith("run        ━━━━━━━━━━━━━━━━━━──────")
        assert whole.endswith("  300/1,000  30.0 %")
        assert len(whole) == len(epoch)
        assert numbers == (
            "loss 1.25 | accuracy 42.5 % | top-1 50.00 % | probe top-1 25.00 % | "
            "1,600 images/s (800 per device) | data wait 2.1 %"
        )
        assert COLOURS.search(terminal.written)


@pytest.mark.parametrize("columns", [79, 45])
def test_a_narrow_one_shows_what_fits_and_folds_no_row(run: RunDirectory, columns: int) -> None:
    with following(run, columns) as terminal:
        text = "\n".join(terminal.wait(lambda text: "loss 1.25" in text))
        assert "time left 1 d 0" in text
        assert ("━" in text) == (columns == 79)
        assert ("run 30 %" in text) == (columns < 50)
        written = COLOURS.sub(b"", terminal.written).decode()
        view = written[written.rindex("first: training") :].split("\x1b[K")
        assert all(len(row.strip()) < columns for row in view[:-1])


def test_what_changes_is_drawn_in_place_lines_go_above_and_nothing_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    add_progress(run, **MEASURED)
    lock = ExitStack()
    assert lock.enter_context(run_lock(run, "7"))
    with lock, following(run, 100) as terminal:
        shown(terminal)
        with run.events_path.open("a") as file:
            alert = {"event": "alert", "about": "checkpoint_failed", "text": "disk full"}
            file.write(json.dumps(alert) + "\n")
        changed = {"step": 350, "state": "evaluating", "evaluated_fraction": 0.4}
        add_progress(run, **(MEASURED | changed | {"eval_top1_fraction": 0.75}))
        rows = terminal.wait(lambda text: "350/1,000" in text and "disk full" in text)
        told, news = "first: disk full", "first: step 350: top-1 75.00 %"
        heads = [row for row in rows if row.startswith("first: evaluating 40 %")]
        assert len(heads) == 1
        assert not any(row.startswith("first: training") for row in rows)
        assert rows.index(told) < rows.index(heads[0]) > rows.index(news)
        terminal.resize(140)
        rows = terminal.wait(lambda text: "\nepoch 4/10 " + 30 * "━" in text)
        assert sum(row.startswith("first: evaluating") for row in rows) == 1
        add_progress(run, **(MEASURED | {"step": 1000, "state": "done"}))
        lock.close()
        rows = terminal.wait(lambda text: "run directory:" in text)
        assert rows.index("first: done") > rows.index(told)
        assert not any("time left" in row or "━" in row for row in rows)


def test_without_colours_the_bars_still_tell(run: RunDirectory) -> None:
    with following(run, 100, NO_COLOR="1") as terminal:
        assert any("━━━───" in row for row in shown(terminal))
        assert not COLOURS.search(terminal.written)


def test_a_terminal_without_a_cursor_gets_lines(run: RunDirectory) -> None:
    with following(run, 250, TERM="dumb") as terminal:
        rows = terminal.wait(lambda text: "data wait" in text)
        assert rows[-1].startswith(
            "first training step 300/1,000 (30.0 %) | epoch 4/10 | loss 1.25 | accuracy 42.5 %"
        )
        assert b"\x1b" not in terminal.written


def test_lines_say_each_state_once_and_what_goes_on_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = Lines()
    for state, attempt in (
        ("starting", None), ("starting", 1), ("training", 1), ("training", 1), ("done", 1),
        ("done", 1),
    ):  # fmt: skip
        lines.show("first", {**MEASURED, "state": state, "attempt": attempt}, line_seconds=60.0)
    lines.show("first", {**MEASURED, "state": "done"}, line_seconds=0.0)
    said = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert said == ["starting", "training", "done"]
    for _ in range(2):
        lines.show("first", {**MEASURED, "state": "training"}, line_seconds=0.0)
    assert len(capsys.readouterr().out.splitlines()) == 2
