"""Tables for eyes and for pipes."""

import io
import re
import sys

import pytest

from launch.look_after.tables import age, duration, one_line, print_table, size

HEADINGS = ("name", "state", "step")
ROWS = [["first", "running", "1,200"], ["[red]x\x1b[2J", "done", "7"]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_plain_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEADINGS, ROWS, right={"step"})
    assert capsys.readouterr().out.splitlines() == [
        "name        state     step",
        "first       running  1,200",
        "[red]x?[2J  done         7",
    ]


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_colours_unless_they_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    print_table(HEADINGS, ROWS, right={"step"})
    text = screen.getvalue()
    assert ("\x1b[" in text) != no_color
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "[red]x?[2J" in plain  # neither markup nor the cursor's commands
    assert "1,200" in plain


def test_a_narrow_terminal_gets_the_first_columns_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    print_table(HEADINGS, ROWS, right={"step"})
    shown = [line.split() for line in screen.getvalue().splitlines()]
    assert shown == [["name", "state"], ["first", "running"], ["[red]x?[2J", "done"]]


def test_durations_ages_and_sizes() -> None:
    assert [duration(s) for s in (None, 0, 3725.4, 86400 * 3 + 15000)] == [
        *("-", "0:00:00", "1:02:05", "3 d 04:10"),
    ]
    assert [age(s) for s in (None, 0.2, 119, 120, 7200, 200_000)] == [
        *("-", "0 s", "119 s", "2 min", "2 h", "2 d"),
    ]
    assert [size(n) for n in (7, 2048, 5 * 2**30, 3 * 2**40)] == [
        *("7 bytes", "2.0 KiB", "5.0 GiB", "3.0 TiB"),
    ]
    assert one_line("a\nb\x1bc\u2028é") == "a?b?c?é"
