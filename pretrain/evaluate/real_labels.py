"""ReaL labels of ImageNet's validation images: any number of right answers for each, or none.

Beyer et al., "Are we done with ImageNet?", arXiv 2006.07159. ``real.json`` is a list of lists of
labels (positions in the sorted list of the 1,000 classes), by the number of the validation image,
which starts at 1. Images without a label are not counted. No torch.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.data.shards import BadSampleError, ShardReader
from pretrain.errors import DataError
from pretrain.evaluate.classes import LEFT_OUT

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


def read_real_labels(path: Path) -> list[list[int]]:
    """Read the file.

    Raises:
        DataError: it cannot be read, or is no list of lists of labels.
    """
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(
            f"{path}: expected ReaL labels as JSON, found something else ({error})"
        ) from None
    if not isinstance(value, list) or not value:
        raise DataError(f"{path}: expected a list of lists of labels, got {str(value)[:60]!r}")
    for number, labels in enumerate(value, start=1):
        if not isinstance(labels, list) or any(type(x) is not int or x < 0 for x in labels):
            raise DataError(
                f"{path}: image {number}: expected a list of labels, got {str(labels)[:60]!r}"
            )
    return value


def image_number(reader: ShardReader, sample_id: int) -> int | None:
    """The number of a validation image, from the name it was packed from or its key; None if none.

    Raises:
        DataError: the shard's index is damaged, or the shard cannot be fetched.
    """
    try:
        metadata = json.loads(reader.read_metadata(sample_id) or b"{}")
        source = metadata.get("source", "") if isinstance(metadata, dict) else ""
        found = _NUMBER.search(str(source)) or _NUMBER.search(reader.read(sample_id).key)
    except (BadSampleError, ValueError):
        return None
    return int(found[1]) if found else None


def check_numbers(numbers: Sequence[int | None], real: Sequence[object], what: str) -> None:
    """Refuse a split whose images are not those of the ReaL labels, each exactly once.

    Args:
        numbers: of the split's images, in any order; None where an image has none.
        real: the labels by number.
        what: names the split in messages.

    Raises:
        DataError: saying what differs.
    """
    nameless = sum(number is None for number in numbers)
    if nameless:
        raise DataError(
            f"{what}: {nameless:,} of {len(numbers):,} images do not say their number "
            "(ILSVRC2012_val_00000001 and so on), by which ReaL labels are found; pack the "
            "validation images under their published names"
        )
    if sorted(filter(None, numbers)) != list(range(1, len(real) + 1)):
        raise DataError(
            f"{what}: expected the validation images 1 to {len(real):,} of the ReaL labels, each "
            f"once, found {len(numbers):,} images of {len(set(numbers)):,} numbers"
        )


def label_table(
    real: Sequence[Sequence[int]],
    numbers: Sequence[int],
    set_classes: Sequence[str],
    positions: Sequence[int],
    path: Path,
) -> list[list[int]]:
    """The right answers of each image of a split.

    Args:
        real: labels by number, in the sorted order of the set's classes.
        numbers: of the split's images, by sample id.
        set_classes: WordNet ids in the order of the set's labels.
        positions: of each label of the set among the classes evaluated, or ``LEFT_OUT``.
        path: of the file, for the message.

    Returns:
        Positions among the classes evaluated, by sample id; rows of one length, filled up with
        ``LEFT_OUT``.

    Raises:
        DataError: a label that the set has no class for.
    """
    highest = max((label for labels in real for label in labels), default=0)
    if highest >= len(set_classes):
        raise DataError(
            f"{path}: has label {highest}, but the set has {len(set_classes)} classes; ReaL labels "
            "go with ImageNet-1K"
        )
    position_of = dict(zip(set_classes, positions, strict=True))
    by_real_label = [position_of[wnid] for wnid in sorted(set_classes)]
    rows = [
        [position for label in real[number - 1] if (position := by_real_label[label]) != LEFT_OUT]
        for number in numbers
    ]
    width = max(1, *map(len, rows))
    return [row + [LEFT_OUT] * (width - len(row)) for row in rows]
