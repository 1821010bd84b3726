"""Tables and durations: coloured on a terminal, plain aligned columns elsewhere."""

import os
import sys
from collections.abc import Collection, Sequence

GAP = "  "
_COLOURS = {
    "running": "green",
    "waiting": "yellow",
    "done": "blue",
    "failed": "red",
    "lost": "red",
    "broken": "red",
    "unknown": "red",
}
"""Of a cell that holds exactly this word."""


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str]
) -> None:
    """Print rows below headings; a terminal too narrow for all columns shows the first ones.

    Args:
        headings: one for each column.
        rows: cells of one line each.
        right: headings of the columns that are aligned to the right.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(headings, cells, right=right)
        return
    for line in aligned([list(headings), *cells], [heading in right for heading in headings]):
        print(line)


def aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Lines in which the cells of a column stand below each other."""
    widths = [max((len(row[index]) for row in rows), default=0) for index in range(len(right))]
    lines = []
    for row in rows:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append(GAP.join(padded).rstrip())
    return lines


def one_line(text: str) -> str:
    """Text that moves no cursor: names and reasons come from files."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def duration(seconds: float | None) -> str:
    """A time span such as ``1:02:05`` or ``3 d 04:10``; ``-`` where it is not known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}"


def age(seconds: float | None) -> str:
    """How long ago, in its largest unit; ``-`` where it is not known."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(bytes_count: int) -> str:
    """Bytes in a unit that leaves few digits."""
    if bytes_count < 1024:
        return f"{bytes_count} bytes"
    amount = float(bytes_count)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1000:
            return f"{amount:,.1f} {unit}"
    return f"{amount / 1024:,.1f} TiB"


def _print_rich(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    plain = bool(os.environ.get("NO_COLOR"))  # rich itself would still embolden
    table = Table(box=None, pad_edge=False, header_style="" if plain else "bold")
    width = -len(GAP)
    for index, heading in enumerate(headings):
        width += max(len(cells[index]) for cells in (headings, *rows)) + len(GAP)
        if index > 0 and width > console.width:
            break
        justify = "right" if heading in right else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for row in rows:
        shown = row[: len(table.columns)]
        table.add_row(*[Text(cell, "" if plain else _COLOURS.get(cell, "")) for cell in shown])
    console.print(table)
