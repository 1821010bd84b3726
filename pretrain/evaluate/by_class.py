"""Which classes are the worst, and what they are taken for: the same for every report."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.data.decode import ImageError
from pretrain.data.manifest import Manifest
from pretrain.data.shards import BadSampleError
from pretrain.data.thumbnail import thumbnail
from pretrain.errors import PretrainError
from pretrain.evaluate.classes import ClassMap
from pretrain.evaluate.tally import ClassCount, Mistake, Tallied
from pretrain.files import replace_text
from pretrain.metrics.names import Of, Weights
from pretrain.run_directory import RunDirectory

WORST_KEPT, PAIRS_KEPT = 12, 20
"""Classes and most-confused pairs in a run's by_class.json."""
TAKEN_FOR_KEPT = 3
EXAMPLES_KEPT = 4
"""Pictures of each of those classes."""
PICTURE_SIDE = 128
"""Longest side, pixels."""


@dataclass(frozen=True)
class Pictures:
    """Small JPEGs of images that were taken for something else.

    Attributes:
        files: by name.
        mistakes: by the same names, what each shows.
        fault: why there are no more; None where nothing went wrong.
    """

    files: dict[str, bytes]
    mistakes: dict[str, Mistake]
    fault: str | None


@dataclass(frozen=True)
class ByClass:
    """What a run keeps of its newest evaluation: by_class.json's content, and the pictures."""

    document: dict[str, Any]
    pictures: Pictures


def readable_names(manifest: Manifest, known: Mapping[str, str]) -> dict[str, str]:
    """A readable name of every class of a set: its own, else one ``known`` by id, else the id."""
    given = zip(manifest.classes, manifest.class_names, strict=True)
    return {wnid: name if name != wnid else known.get(wnid, wnid) for wnid, name in given}


def worst_first(counts: Sequence[ClassCount], classes: Sequence[str]) -> list[int]:
    """Positions of classes by rising top-1, then top-5; those without images last.

    Of equal ones that with more images comes first, then the lesser id.

    Args:
        counts: of each class.
        classes: their ids.
    """

    def place(position: int) -> tuple[bool, float, float, int, str]:
        count = counts[position]
        images = max(count.images, 1)
        shares = count.top1 / images, count.top5 / images
        return (count.images == 0, *shares, -count.images, classes[position])

    return sorted(range(len(counts)), key=place)


def worst_classes(tallied: Tallied, classes: Sequence[str]) -> list[int]:
    """Positions of the worst classes that a run keeps, none of which is right throughout."""
    counts = tallied.by_class
    worst = worst_first(counts, classes)[:WORST_KEPT]
    return [position for position in worst if counts[position].top1 < counts[position].images]


def take_pictures(
    mistakes: Sequence[Mistake], read: Callable[[int], bytes | None], *, step: int
) -> Pictures:
    """Make small pictures of images; a fault ends it, and is reported.

    Args:
        mistakes: which images.
        read: gives the file of a sample id, or None for one that is not at hand.
        step: steps done, for names that no other evaluation's pictures have.
    """
    pictures = Pictures({}, {}, None)
    try:
        for number, mistake in enumerate(mistakes):
            data = read(mistake.sample_id)
            if data is not None:
                name = f"step_{step:08d}_{number:02d}.jpg"
                pictures.files[name] = thumbnail(data, PICTURE_SIDE)
                pictures.mistakes[name] = mistake
    except (PretrainError, BadSampleError, ImageError, OSError) as error:
        return Pictures(pictures.files, pictures.mistakes, str(error))
    return pictures


def by_class_document(
    manifest: Manifest,
    split: str,
    classes: ClassMap,
    tallied: Tallied,
    pictures: Pictures,
    *,
    names: Mapping[str, str],
    step: int,
    weights: Weights,
    of: Of,
) -> dict[str, Any]:
    """The content of by_class.json.

    Args:
        manifest: of the set.
        split: that was evaluated.
        classes: of the set in the model's head.
        tallied: what was counted.
        pictures: of images of the worst classes.
        names: readable names by id, for classes that the set itself does not name.
        step: steps done.
        weights: which were evaluated.
        of: whether it is the run's own split or its probe.
    """
    readable = readable_names(manifest, names)
    named = [{"id": wnid, "name": readable[wnid]} for wnid in classes.classes]
    return {
        "step": step,
        "split": split,
        "edition": manifest.edition,
        "weights": weights,
        "of": of,
        "classes": len(named),
        "images": tallied.overall.images,
        "top1_fraction": tallied.overall.top1_fraction,
        "worst": [
            _one_of_the_worst(position, tallied, pictures, named)
            for position in worst_classes(tallied, classes.classes)
        ],
        "confused": [
            {
                "label": named[pair.label],
                "taken_for": named[pair.predicted],
                "images": pair.images,
                "of_images": tallied.by_class[pair.label].images,
            }
            for pair in tallied.confusions[:PAIRS_KEPT]
        ],
    }


def _one_of_the_worst(
    position: int, tallied: Tallied, pictures: Pictures, named: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    count = tallied.by_class[position]
    taken_for = [pair for pair in tallied.confusions if pair.label == position]
    return {
        **named[position],
        "images": count.images,
        "top1_fraction": count.top1 / count.images,
        "top5_fraction": count.top5 / count.images,
        "taken_for": [
            {**named[pair.predicted], "images": pair.images} for pair in taken_for[:TAKEN_FOR_KEPT]
        ],
        "examples": [
            {"file": f"examples/{name}", "taken_for": named[mistake.predicted]}
            for name, mistake in pictures.mistakes.items()
            if mistake.label == position
        ],
    }


def write_by_class(run: RunDirectory, found: ByClass) -> None:
    """Replace a run's by_class.json and its pictures; rank zero.

    At any time every picture that the file names is there: new ones come before it, old ones go
    after it.

    Raises:
        OSError: they cannot be written.
    """
    pictures = found.pictures.files
    run.examples_dir.mkdir(exist_ok=True)
    for name, data in pictures.items():
        # Nothing names it yet, and what a crash leaves of it the next evaluation removes.
        (run.examples_dir / name).write_bytes(data)
    text = json.dumps(found.document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_text(run.by_class_path, text)
    for path in run.examples_dir.iterdir():
        if path.name not in pictures:
            path.unlink(missing_ok=True)
