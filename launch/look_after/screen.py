"""A few rows at the lower end of a terminal that are drawn again and again; lines go above them."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from launch.look_after.tables import one_line
from launch.look_after.view import Line, progress_line, view

if TYPE_CHECKING:
    from rich.console import Console

ENDED = ("done", "stopped")
"""States that training leaves only with another attempt."""
_UP, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[{}A", "\x1b[K", "\x1b[J"


class Lines:
    """Where there is no terminal: lines, one below the other."""

    def __init__(self) -> None:
        self._shown: tuple[object, ...] = ()
        self._shown_time = 0.0

    def say(self, line: str, *, alarming: bool = False) -> None:
        """Print a line; what is alarming looks like all else."""
        print(line, flush=True)

    def show(self, name: str, progress: dict[str, Any], *, line_seconds: float) -> None:
        """Print how far a run is: each new state, and the same again after some time, not the end.

        Args:
            name: what the run is called.
            progress: its progress.json.
            line_seconds: that time.
        """
        state = (name, progress.get("state"))
        is_due = time.monotonic() - self._shown_time >= line_seconds
        if state != self._shown or (is_due and progress.get("state") not in ENDED):
            self._shown, self._shown_time = state, time.monotonic()
            self.say(progress_line(name, progress, now=time.time()))

    def clear(self) -> None:
        """Nothing: lines stay."""


class Screen:
    """The terminal. Every change is one write, and what has not changed is not written again.

    Args:
        console: rich's, of a terminal that can move its cursor.
        coloured: whether rows and lines have styles.
    """

    def __init__(self, console: "Console", *, coloured: bool) -> None:
        self._console = console
        self._coloured = coloured
        self._rows: list[str] = []
        self._lengths: list[int] = []
        self._columns = 0

    def say(self, line: str, *, alarming: bool = False) -> None:
        """Print a line above the rows."""
        said = self._styled([(one_line(line), "yellow" if alarming else "")])
        self._write(self._back() + f"{said}{_CLEAR_LINE}\n" + self._drawn())

    def show(self, name: str, progress: dict[str, Any], *, line_seconds: float = 0.0) -> None:
        """Put how far a run is in the place of what was shown before.

        Args:
            name: what the run is called.
            progress: its progress.json.
            line_seconds: of no meaning here.
        """
        columns, lines = self._console.size
        # The last column stays free, as some terminals go to the next row there.
        size = {"columns": max(1, columns - 1), "ascii_only": self._console.options.ascii_only}
        rows = view(name, progress, now=time.time(), **size)
        self._draw(rows[: max(1, lines - 1)])

    def clear(self) -> None:
        """Show no run, until the next one."""
        self._draw([])

    def _draw(self, rows: list[Line]) -> None:
        drawn = [self._styled(row) for row in rows]
        if (drawn, self._console.width) == (self._rows, self._columns):
            return
        back = self._back()
        if self._columns != self._console.width:
            back += _CLEAR_BELOW  # or tmux would take rows for one folded line ever after
        self._rows, self._columns = drawn, self._console.width
        self._lengths = [sum(len(text) for text, _ in row) for row in rows]
        self._write(back + self._drawn())

    def _back(self) -> str:
        """Move to the first row. Terminals fold the rows when they get narrower."""
        folded = sum(max(1, math.ceil(length / self._console.width)) for length in self._lengths)
        return "\r" + (_UP.format(folded) if folded else "")

    def _drawn(self) -> str:
        return "".join(f"{row}{_CLEAR_LINE}\n" for row in self._rows) + _CLEAR_BELOW

    def _styled(self, row: Line) -> str:
        if not self._coloured:
            return "".join(text for text, _ in row)
        return "".join(self._console.get_style(style).render(text) for text, style in row)

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


@contextlib.contextmanager
def open_screen() -> Iterator[Lines | Screen]:
    """The terminal on standard output, or lines where there is none, or one without a cursor.

    ``NO_COLOR`` leaves out every style; the cursor moves all the same.
    """
    if not sys.stdout.isatty():
        yield Lines()
        return
    from rich.console import Console

    console = Console()
    if console.is_dumb_terminal:
        yield Lines()
        return
    screen = Screen(console, coloured=not os.environ.get("NO_COLOR"))
    try:
        yield screen
    finally:
        screen.clear()
