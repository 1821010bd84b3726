"""Ids and names of a head's rows, from the places that each layout has for them. No torch."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.data.manifest import read_manifest
from pretrain.errors import DataError, ModelError

_WORDNET_ID = re.compile(r"n\d{8}")


class Labels(NamedTuple):
    """What the rows of a head stand for.

    Attributes:
        ids: WordNet or other unique ids, in the rows' order; None if unknown.
        names: for people, in the same order; None if unknown.
    """

    ids: tuple[str, ...] | None
    names: tuple[str, ...] | None

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return self.ids is not None or self.names is not None

    def for_rows(self, rows: int) -> "Labels":
        """These labels where they are one per row and unique, else without those that are not."""
        ids = self.ids if self.ids and len(self.ids) == rows == len(set(self.ids)) else None
        names = self.names if self.names and len(self.names) == rows else None
        return Labels(ids, names)


NONE = Labels(None, None)


def read_labels(path: Path, rows: int) -> Labels:
    """Read labels that a user gives: a text file, or a shard set of the same classes.

    Args:
        path: lines ``id`` or ``id<TAB>name`` in the rows' order, or the shard set's directory.
        rows: of the head.

    Raises:
        DataError: it cannot be read.
        ModelError: it is not one label per row, each once.
    """
    labels = read_label_list(path)
    if len(labels.ids or ()) != rows:
        raise ModelError(
            f"{path}: expected {rows} classes, one per row, got {len(labels.ids or ())}"
        )
    return labels


def read_label_list(path: Path) -> Labels:
    """Read labels that a user gives, as `read_labels`, of a head that is not known yet.

    Raises:
        DataError: it cannot be read.
        ModelError: an id is there twice, or there is none.
    """
    if path.is_dir():
        manifest = read_manifest(path)
        labels = Labels(manifest.classes, manifest.class_names)
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from None
        entries = [line.partition("\t") for line in lines if line.strip()]
        labels = Labels(
            tuple(entry[0].strip() for entry in entries),
            tuple(entry[2].strip() or entry[0].strip() for entry in entries),
        )
    if not labels.ids:
        raise ModelError(f"{path}: expected class ids, one a line, found none")
    if len(set(labels.ids)) < len(labels.ids):
        raise ModelError(f"{path}: expected each class id once")
    return labels


def labels_of_objects(objects: Mapping[str, Any]) -> Labels:
    """From beside the tensors of a pickle: as written here, or mmengine's ``meta``."""
    meta = objects.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    dataset = meta.get("dataset_meta") or {}
    names = meta.get("CLASSES")
    if isinstance(dataset, dict):
        names = dataset.get("classes", dataset.get("CLASSES", names))
    return Labels(
        _texts(objects.get("classes", meta.get("class_ids"))),
        _texts(objects.get("class_names")) or _texts(names),
    )


def labels_of_metadata(metadata: Mapping[str, str]) -> Labels:
    """From a safetensors file's own metadata."""
    return Labels(
        *(_texts(_parsed(metadata.get(key, "null"))) for key in ("classes", "class_names"))
    )


def labels_of_hub(config: Mapping[str, Any]) -> Labels:
    """From the config.json of timm's or transformers' directory."""
    if "architecture" in config:
        settings = config.get("pretrained_cfg") or {}
        ids = _texts(config.get("label_names", settings.get("label_names")))
        described = config.get("label_descriptions", settings.get("label_descriptions"))
        if ids and isinstance(described, dict):
            return Labels(ids, tuple(str(described.get(label, label)) for label in ids))
        return Labels(ids, ids)
    said = config.get("id2label")
    ids = _texts(config.get("class_ids"))
    if not isinstance(said, dict) or set(said) != {str(row) for row in range(len(said))}:
        return Labels(ids, None)
    names = tuple(str(said[str(row)]) for row in range(len(said)))
    if names == tuple(f"LABEL_{row}" for row in range(len(names))):
        return Labels(ids, None)
    if ids is None and all(_WORDNET_ID.fullmatch(name) for name in names):
        ids = names
    if ids is not None and len(ids) == len(names):
        pairs = zip(names, ids, strict=True)
        names = tuple(name.removesuffix(f" ({label})") for name, label in pairs)
    return Labels(ids, names)


def unique_names(labels: Labels, rows: int) -> list[str]:
    """A name for each row, no two alike: ids follow names that several rows have."""
    names = list(labels.names or labels.ids or [f"LABEL_{row}" for row in range(rows)])
    often = Counter(names)
    marks: Sequence[object] = labels.ids or range(rows)
    return [
        f"{name} ({mark})" if often[name] > 1 else name
        for name, mark in zip(names, marks, strict=True)
    ]


def _texts(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        return tuple(value)
    return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
