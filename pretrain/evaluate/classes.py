"""Which rows of a model's head stand for the classes of a set: by WordNet id, never by position.

A set is evaluated over its own classes only, as published practice does for ImageNet-A and R: the
logits of all others are left out before the highest is looked for. No torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.errors import DataError

SHOWN_IDS = 20
LEFT_OUT = -1
"""Stands for the position of a class that is not evaluated."""


@dataclass(frozen=True)
class ClassMap:
    """The classes that are evaluated, Y of them.

    Attributes:
        columns: row of the model's head for each, in the set's order.
        positions: of each label of the set among them, or `LEFT_OUT`.
        classes: their WordNet ids.
        left_out: ids of the set that the model does not know.
    """

    columns: tuple[int, ...]
    positions: tuple[int, ...]
    classes: tuple[str, ...]
    left_out: tuple[str, ...]


def match_classes(
    model_classes: Sequence[str],
    set_classes: Sequence[str],
    *,
    what: str,
    leave_out_unknown: bool,
    switch: str,
) -> ClassMap:
    """Find every class of a set in a model's head.

    Args:
        model_classes: WordNet ids in the order of the head's rows.
        set_classes: WordNet ids in the order of the set's labels.
        what: names the set in messages.
        leave_out_unknown: evaluate without the classes that the model does not know, and without
            their images; otherwise they are refused.
        switch: what turns that on, for the message.

    Raises:
        DataError: the model does not know some classes, or none.
    """
    row_of = {wnid: row for row, wnid in enumerate(model_classes)}
    known = tuple(wnid for wnid in set_classes if wnid in row_of)
    unknown = tuple(wnid for wnid in set_classes if wnid not in row_of)
    if not known:
        raise DataError(
            f"{what}: the model knows none of its {len(set_classes):,} classes, such as "
            f"{set_classes[0]}; the model's are such as {model_classes[0]}{_numbered(set_classes)}"
        )
    if unknown and not leave_out_unknown:
        more = len(unknown) - SHOWN_IDS
        raise DataError(
            f"{what}: the model does not know {len(unknown):,} of its {len(set_classes):,} "
            f"classes: {', '.join(unknown[:SHOWN_IDS])}{f' and {more:,} more' if more > 0 else ''};"
            f" {switch} evaluates without them and their images"
        )
    position_of = {wnid: position for position, wnid in enumerate(known)}
    return ClassMap(
        columns=tuple(row_of[wnid] for wnid in known),
        positions=tuple(position_of.get(wnid, LEFT_OUT) for wnid in set_classes),
        classes=known,
        left_out=unknown,
    )


def _numbered(set_classes: Sequence[str]) -> str:
    """What to do about folders named 0 to 999, as ImageNet-V2 has them."""
    if not all(name.isdecimal() for name in set_classes):
        return ""
    return "; pack the set again with --numbered-by SHARD_SET, whose labels the numbers are"
