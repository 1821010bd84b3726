"""The newest evaluation by class: the worst classes with pictures, and what is taken for what."""

from collections.abc import Mapping
from typing import Any

from pretrain.metrics.report.elements import escape, note, percent, picture, table
from pretrain.metrics.report.facts import Facts

WORST_MAX = 12
EXAMPLES_MAX = 4
CONFUSED_MAX = 20
EXAMPLE_BYTES_MAX = 2**18


def classes(facts: Facts) -> str:
    """Worst classes and confused pairs; nothing without ``by_class.json``."""
    found = facts.by_class
    worst = "".join(_card(facts, entry) for entry in found.get("worst", [])[:WORST_MAX])
    pairs = [_pair(entry) for entry in found.get("confused", [])[:CONFUSED_MAX]]
    confused = table(("label", "taken for", "images"), pairs, cells=True)
    if not worst and not confused:
        return ""
    weights = "the averaged weights" if found.get("weights") == "ema" else "the weights as trained"
    of = "the probe, " if found.get("of") == "probe" else ""
    said = (
        f"Of {of}split {escape(str(found.get('split', '')))}, edition "
        f"{escape(str(found.get('edition', '')))}: {found.get('images', 0):,} images of "
        f"{found.get('classes', 0):,} classes, step {found.get('step', 0):,}, {weights}; "
        f"top-1 {percent(found.get('top1_fraction'))}."
    )
    return (
        note(said)
        + (f'<h3>Worst classes</h3><div class="cards">{worst}</div>' if worst else "")
        + (f"<h3>Most confused</h3>{confused}" if confused else "")
    )


def _card(facts: Facts, entry: Mapping[str, Any]) -> str:
    examples = "".join(
        _example(facts, entry, example) for example in entry.get("examples", [])[:EXAMPLES_MAX]
    )
    taken = "".join(
        f"<li>{other.get('images', 0):,} as {_class(other)}</li>"
        for other in entry.get("taken_for", [])[:3]
    )
    rest = f"top-5 {percent(entry.get('top5_fraction'))}, {entry.get('images', 0):,} images"
    return (
        f'<article class="card"><h4>{_class(entry)}</h4>'
        f"<p>top-1 <b>{percent(entry.get('top1_fraction'))}</b> <small>{rest}</small></p>"
        + (f"<ul>{taken}</ul>" if taken else "")
        + (f'<div class="examples">{examples}</div>' if examples else "")
        + "</article>"
    )


def _example(facts: Facts, entry: Mapping[str, Any], example: Mapping[str, Any]) -> str:
    directory = facts.run.examples_dir.resolve()
    path = (facts.run.path / str(example.get("file", ""))).resolve()
    if not path.is_relative_to(directory):
        return ""
    taken_for = example.get("taken_for", {})
    said = f"{_name(entry)} taken for {_name(taken_for)}"
    shown = picture(path, said, EXAMPLE_BYTES_MAX)
    if not shown:
        return ""
    return f"<figure>{shown}<figcaption>{escape(_name(taken_for))}</figcaption></figure>"


def _pair(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    label, taken_for = _class(entry["label"]), _class(entry["taken_for"])
    return label, taken_for, f"{entry.get('images', 0):,} of {entry.get('of_images', 0):,}"


def _class(entry: Mapping[str, Any]) -> str:
    known = str(entry.get("id", ""))
    if _name(entry) == known:
        return escape(known)
    return f"{escape(_name(entry))} <small>{escape(known)}</small>"


def _name(entry: Mapping[str, Any]) -> str:
    """The first of a class's names."""
    return str(entry.get("name") or entry.get("id", "")).split(",")[0].strip()
