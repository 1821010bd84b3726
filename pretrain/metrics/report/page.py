"""report.html: one run on one page, from its files alone; needs no network to be read."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import yaml

from pretrain.metrics.report.classes import classes
from pretrain.metrics.report.elements import anchor, code, escape, note, picture, section
from pretrain.metrics.report.facts import Facts, config_of, read_facts, text_of
from pretrain.metrics.report.headline import headline
from pretrain.metrics.report.planned import commands, environment, plan_and_actual
from pretrain.metrics.report.script import SCRIPT
from pretrain.metrics.report.style import STYLE
from pretrain.metrics.report.tables import (
    OWN,
    PROBE,
    attempts,
    evaluations,
    events,
    meanings,
    time_totals,
)
from pretrain.run_directory import RunDirectory

AUGMENTATION_BYTES_MAX = 8 * 2**20
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the page may load, for the browser to enforce: nothing from anywhere."""

_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError)
"""What comes of files that hold something else than they should."""


def report_html(run: RunDirectory) -> str:
    """The report of a run as it stands: UTF-8 HTML without any outside reference.

    Files that are not there yet leave their section out; one that is damaged leaves a line instead.
    """
    facts = read_facts(run)
    parts: list[tuple[str, Callable[[], str], bool]] = [
        ("Curves", lambda: _curves(facts), False),
        ("Where the time went", lambda: time_totals(facts), False),
        ("What the model sees", lambda: _augmentation(facts), False),
        ("Evaluations", lambda: evaluations(facts, OWN), False),
        ("Evaluations of the probe", lambda: evaluations(facts, PROBE), False),
        ("Classes", lambda: classes(facts), False),
        ("Plan and actual", lambda: plan_and_actual(facts), False),
        ("Attempts", lambda: attempts(facts), False),
        ("Events", lambda: events(facts), False),
        ("Reproduce", lambda: code(commands(facts)), False),
        ("Environment", lambda: environment(facts), True),
        ("Config", lambda: _config(run), True),
        ("Plan", lambda: code(text_of(run.plan_path)), True),
        ("What the numbers mean", lambda: meanings(facts), True),
    ]
    made = [(title, _safely(make), folded) for title, make, folded in parts]
    links = [title for title, content, _ in made if content]
    body = [section(title, content, folded=folded) for title, content, folded in made]
    return page(
        facts.name,
        facts.state,
        f"{facts.name}: training report",
        links,
        [_safely(lambda: headline(facts)), *body],
    )


def page(name: str, state: str, title: str, links: Sequence[str], body: Sequence[str]) -> str:
    """A whole document.

    Args:
        name: its heading.
        state: a word beside it; none where empty.
        title: what the browser shows.
        links: titles of the sections that can be gone to.
        body: HTML of the parts.
    """
    kind = escape(state)
    badge = f'<span class="state {kind}">{kind}</span>' if state else ""
    nav = "".join(f'<a href="#{anchor(link)}">{escape(link)}</a>' for link in links)
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    content = "\n".join(part for part in body if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n"
        f"<header><h1>{escape(name)}</h1>{badge}<small>written {written}</small></header>\n"
        f"<nav>{nav}</nav>\n{content}\n</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _safely(make: Callable[[], str]) -> str:
    """What ``make`` makes, or a line that says why it could not."""
    try:
        return make()
    except _DAMAGE as error:
        said = f"{type(error).__name__}: {error}"
        return note(f"This part could not be made of what the files hold ({escape(said)}).")


def _curves(facts: Facts) -> str:
    if not facts.records:
        return "<p>Nothing was recorded yet.</p>"
    # Matplotlib takes most of a second to import.
    from pretrain.metrics.report.charts import charts, marks
    from pretrain.metrics.report.curves import Marks, figure

    marked = marks(facts)
    groups = []
    for title, group in charts(facts).items():
        figures = [
            figure(chart, marked if chart.axis == "step" else Marks(max(chart.lines[0].x)))
            for chart in group
        ]
        groups.append(f'<h3>{title}</h3><div class="curves">{"".join(figures)}</div>')
    said = ["Shaded: the range of the records that a point of a long curve averages."]
    if marked.evaluations:
        said.append("Ticks on the axis: evaluations.")
    if marked.attempts:
        said.append("Dashed lines, or ticks at the top: where a later attempt took over.")
    return "".join(groups) + note(" ".join(said))


def _config(run: RunDirectory) -> str:
    values = config_of(run)
    return "" if values is None else code(yaml.safe_dump(values, sort_keys=False))


def _augmentation(facts: Facts) -> str:
    shown = picture(facts.run.augmentation_path, "images of the first step", AUGMENTATION_BYTES_MAX)
    if not shown:
        return ""
    said = note("Images of the first step as they enter the model, with their labels and weights.")
    return f'{said}<div class="panel">{shown}</div>'
