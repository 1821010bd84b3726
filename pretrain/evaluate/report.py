"""What an evaluation found, for the terminal and as JSON and Markdown files. Rank zero only.

The files hold nothing that depends on the number of ranks or the time: two evaluations of the same
weights on the same images differ in no byte.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.data.manifest import class_order_sha256
from pretrain.errors import CheckpointError
from pretrain.evaluate.by_class import readable_names, worst_first
from pretrain.evaluate.classification import EvalResult
from pretrain.evaluate.measure import EvalSet, Measured
from pretrain.evaluate.recorded import INTERPOLATION, Preprocessing
from pretrain.evaluate.tally import ClassCount, RealResult, Tallied
from pretrain.files import replace_text
from pretrain.metrics.jsonl import plain

FORMAT, VERSION = "swin-pretrain evaluation", 1
PAIRS_KEPT = 100
"""Most-confused pairs in the files; the terminal shows the first few."""
PAIRS_SHOWN = 5


@dataclass(frozen=True)
class Evaluation:
    """All sets that a model was evaluated on, and how.

    Attributes:
        weights: path, which of them, variant, class order and provenance, as they are reported.
        preprocessing: what was done to each image.
        stated_by: who said so: the weights, the recipe for the image size, or the command line.
        precision: of the forward pass.
        names: readable names by WordNet id, for classes that the set itself does not name.
        sets: each with what came of it.
    """

    weights: Mapping[str, Any]
    preprocessing: Preprocessing
    stated_by: str
    precision: str
    names: Mapping[str, str]
    sets: Sequence[tuple[EvalSet, Measured]]


def document(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as a JSON object; fractions from 0 to 1."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "weights": dict(evaluation.weights),
        "preprocessing": {
            **evaluation.preprocessing.model_dump(mode="json"),
            "interpolation": INTERPOLATION,
            "stated_by": evaluation.stated_by,
        },
        "precision": evaluation.precision,
        "sets": [_set_document(test, found, evaluation) for test, found in evaluation.sets],
    }


def _set_document(test: EvalSet, found: Measured, evaluation: Evaluation) -> dict[str, Any]:
    names = readable_names(test.manifest, evaluation.names)
    classes = test.classes.classes
    tallied = found.tallied
    return {
        "location": test.manifest.location,
        "edition": test.manifest.edition,
        "split": test.split.name,
        "fingerprint": test.manifest.fingerprint(test.split.name),
        "images_in_split": test.split.samples,
        **_with_error(tallied.overall),
        "classes_evaluated": len(classes),
        "class_order_sha256": class_order_sha256(classes),
        "classes_left_out": list(test.classes.left_out),
        "bad_samples": [asdict(bad) for bad in found.bad],
        "real": _real_document(test, tallied),
        "by_class": [
            {"wnid": wnid, "name": names[wnid], **asdict(counts)}
            for wnid, counts in zip(classes, tallied.by_class, strict=True)
        ],
        "most_confused": [
            {
                "wnid": classes[pair.label],
                "name": names[classes[pair.label]],
                "taken_for_wnid": classes[pair.predicted],
                "taken_for_name": names[classes[pair.predicted]],
                "images": pair.images,
                "fraction_of_class": pair.images / tallied.by_class[pair.label].images,
            }
            for pair in tallied.confusions[:PAIRS_KEPT]
        ],
    }


def _real_document(test: EvalSet, tallied: Tallied) -> dict[str, Any] | None:
    if tallied.real is None or test.real is None:
        return None
    return {"labels": str(test.real.path.absolute()), **_with_error(tallied.real)}


HEAD = ("set", "split", "images", "classes", "top-1 %", "±", "top-5 %", "loss")
NUMBERS = range(2, len(HEAD))
"""Columns of `HEAD` that are aligned to the right."""
WIDTH_OF_LOGS = 200


def table_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The main table under `HEAD`: a line for each set, and one for its ReaL labels."""
    rows: list[tuple[str, ...]] = []
    for one in document["sets"]:
        rows.append(
            (
                one["edition"],
                one["split"],
                f"{one['images']:,}",
                f"{one['classes_evaluated']:,}",
                *_percentages(one),
                f"{one['loss']:.4f}",
            )
        )
        real = one["real"]
        if real is not None:
            name, images = f"{one['edition']}, ReaL", f"{real['images']:,}"
            rows.append((name, one["split"], images, rows[-1][3], *_percentages(real), ""))
    return rows


def print_table(document: Mapping[str, Any]) -> None:
    """Print the main table on standard output; names fold where it is narrow, numbers never."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column, name in enumerate(HEAD):
        if column in NUMBERS:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    for row in table_rows(document):
        table.add_row(*row)
    width = None if sys.stdout.isatty() else WIDTH_OF_LOGS
    Console(highlight=False, width=width).print(table)


def _percentages(found: Mapping[str, Any]) -> tuple[str, str, str]:
    """Top-1, its standard error for images drawn at random, and top-5."""
    keys = ("top1_fraction", "top1_standard_error", "top5_fraction")
    top1, error, top5 = (f"{100 * found[key]:.2f}" for key in keys)
    return top1, error, top5


def _with_error(found: EvalResult | RealResult) -> dict[str, Any]:
    share = found.top1_fraction
    error = (share * (1 - share) / found.images) ** 0.5 if found.images else math.nan
    return {**asdict(found), "top1_standard_error": error}


def notes(document: Mapping[str, Any], preprocessing: Preprocessing) -> list[str]:
    """Lines that say how it was measured and what was not counted."""
    weights = document["weights"]
    stated_by = document["preprocessing"]["stated_by"]
    lines = [
        f"weights: {weights['path']} ({weights['which']}{_step(weights)}, {weights['variant']}, "
        f"{weights['classes']:,} classes)",
        f"images: {preprocessing.sentence()}; as {stated_by}",
        f"precision: {document['precision']}; ± is the standard error of top-1",
        *weights["notes"],
    ]
    for one in document["sets"]:
        left_out = one["classes_left_out"]
        if left_out:
            lines.append(
                f"{one['edition']}: {len(left_out):,} classes that the model does not know are "
                f"left out with their images: {', '.join(left_out[:10])}"
                + (f" and {len(left_out) - 10:,} more" if len(left_out) > 10 else "")
            )
        if one["bad_samples"]:
            first = one["bad_samples"][0]
            lines.append(
                f"{one['edition']}: {len(one['bad_samples']):,} images cannot be read and are not "
                f"counted, the first: {first['shard']}, {first['key']}: {first['reason']}"
            )
    return lines


def _step(weights: Mapping[str, Any]) -> str:
    step = weights["provenance"].get("step")
    return "" if step is None else f" of step {step:,}"


def confused_lines(one: Mapping[str, Any], most: int = PAIRS_SHOWN) -> list[str]:
    """The most-confused pairs of a set, one line each."""
    return [
        f"{pair['images']:,} of {pair['name']} ({pair['wnid']}) taken for "
        f"{pair['taken_for_name']} ({pair['taken_for_wnid']}), "
        f"{pair['fraction_of_class']:.1%} of the class"
        for pair in one["most_confused"][:most]
    ]


def markdown(document: Mapping[str, Any], preprocessing: Preprocessing) -> str:
    """The evaluation as a page of Markdown."""
    lines = [f"# Evaluation of {_cell(document['weights']['path'])}", ""]
    lines += _table(HEAD, table_rows(document), NUMBERS)
    lines += [f"- {_cell(line)}" for line in notes(document, preprocessing)]
    lines.append("")
    for one in document["sets"]:
        lines += [f"## {_cell(one['edition'])}, {_cell(one['split'])}", "", *_about(one), ""]
        pairs = [
            (
                f"{pair['images']:,}",
                f"{pair['fraction_of_class']:.1%}",
                f"{pair['name']} ({pair['wnid']})",
                f"{pair['taken_for_name']} ({pair['taken_for_wnid']})",
            )
            for pair in one["most_confused"]
        ]
        lines += ["Most confused pairs:", ""]
        lines += _table(("images", "of the class", "class", "taken for"), pairs, range(2))
        lines += ["By class, the worst first:", ""]
        lines += _table(
            ("class", "name", "images", "top-1 %", "top-5 %"),
            [_class_row(row) for row in _worst_first(one["by_class"])],
            range(2, 5),
        )
    return "\n".join(lines).rstrip() + "\n"


def _about(one: Mapping[str, Any]) -> list[str]:
    """Where a set lies and how much of it was counted."""
    known = one["classes_evaluated"]
    lines = [
        f"{one['location']}: {one['images']:,} of {one['images_in_split']:,} images, "
        f"{known:,} of {known + len(one['classes_left_out']):,} classes",
    ]
    if one["real"] is not None:
        lines.append(f"ReaL labels: {one['real']['labels']}")
    return [f"- {_cell(line)}" for line in lines]


def _worst_first(by_class: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    counts = [ClassCount(row["images"], row["top1"], row["top5"]) for row in by_class]
    return [by_class[position] for position in worst_first(counts, [r["wnid"] for r in by_class])]


def _share(row: Mapping[str, Any], key: str) -> float:
    return row[key] / row["images"] if row["images"] else 0.0


def _class_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (f"{100 * _share(row, key):.1f}" if row["images"] else "" for key in ("top1", "top5"))
    return (row["wnid"], row["name"], f"{row['images']:,}", *shares)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: range) -> list[str]:
    rules = ["---:" if column in numbers else "---" for column in range(len(head))]
    body = [[_cell(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in ([*head], rules, *body)] + [""]


def _cell(text: str) -> str:
    """Text that neither breaks a table nor formats itself."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    for letter in "\\`*_<|[":
        shown = shown.replace(letter, f"\\{letter}")
    return shown


def write_files(stem: Path, evaluation: Evaluation) -> tuple[Path, Path]:
    """Write ``stem.json`` and ``stem.md``, each whole or not at all, replacing earlier ones.

    Raises:
        CheckpointError: they cannot be written.
    """
    found = document(evaluation)
    paths = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.md")
    text = json.dumps(plain(found), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        replace_text(paths[0], text)
        replace_text(paths[1], markdown(found, evaluation.preprocessing))
    except OSError as error:
        raise CheckpointError(f"{stem.parent}: cannot be written: {error.strerror}") from None
    return paths
