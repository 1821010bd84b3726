"""Pieces of HTML that the pages are made of, and how they write numbers."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeGuard

escape = html.escape
GIB = 2**30
PICTURE_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def section(title: str, content: str, *, folded: bool = False) -> str:
    """A headed part of the page; nothing where there is no content."""
    if not content:
        return ""
    name = anchor(title)
    if folded:
        summary = f"<summary><h2>{title}</h2></summary>"
        return f'<details id="{name}">{summary}{content}</details>'
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>'


def anchor(title: str) -> str:
    """The id of a headed part."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def table(
    head: Iterable[str],
    rows: Iterable[Sequence[str]],
    *,
    kind: Literal["", "numbers", "compared"] = "",
    cells: bool = False,
) -> str:
    """A table of texts; nothing without rows.

    Args:
        head: names of the columns.
        rows: texts of each row.
        kind: ``numbers`` are aligned at the right; the first column of what is ``compared`` stays
            in sight.
        cells: whether the texts are HTML already.
    """
    lines = [f"<tr>{''.join(_cell(text, cells) for text in row)}</tr>" for row in rows]
    if not lines:
        return ""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    return (
        f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(text: str, is_html: bool) -> str:
    kind = ' class="time"' if re.fullmatch(r"\d{4}-\d\d-\d\d [\d:]{8}", text) else ""
    return f"<td{kind}>{text if is_html else escape(text)}</td>"


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers: label, value and note of each."""
    found = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd>"
        f"<dd><small>{escape(note)}</small></dd></div>"
        for label, value, note in entries
    )
    return f'<dl class="tiles">{found}</dl>' if found else ""


def code(text: str) -> str:
    """Text as it is; nothing where it is empty."""
    return f'<pre tabindex="0">{escape(text.strip())}</pre>' if text.strip() else ""


def note(text: str) -> str:
    """A small remark; ``text`` is HTML."""
    return f"<p><small>{text}</small></p>" if text else ""


def picture(path: Path, description: str, bytes_max: int) -> str:
    """A picture within the page; nothing where there is none that can be shown."""
    kind = PICTURE_KINDS.get(path.suffix.lower())
    try:
        if kind is None or not 0 < path.stat().st_size <= bytes_max:
            return ""
        content = path.read_bytes()
    except OSError:
        return ""
    encoded = base64.b64encode(content).decode()
    return f'<img alt="{escape(description)}" src="data:image/{kind};base64,{encoded}">'


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is an integer or a float, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def short(value: float) -> str:
    """A number with about four digits.

    Example:
        >>> short(1234567), short(12.3456), short(0.00012345), short(0)
        ('1,234,567', '12.35', '0.0001234', '0')
    """
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 1e-4:
        return f"{value:.4g}"
    return f"{value:.3e}"


def percent(value: object) -> str:
    """A fraction as per cent; nothing for what is no number."""
    return f"{value:.2%}" if isinstance(value, int | float) else ""


def size(value: float) -> str:
    """Bytes in the unit that suits them.

    Example:
        >>> size(512), size(3 * 2**20), size(1.5 * 2**40)
        ('512 B', '3.00 MiB', '1.50 TiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def clock_time(stamp: object) -> str:
    """A unix time in UTC; nothing for what is none."""
    if not isinstance(stamp, int | float):
        return ""
    try:
        return datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return ""
