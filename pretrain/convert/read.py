"""Weights of any layout, told by what is there: official names, the model, the classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pretrain.config.schema import ModelConfig
from pretrain.convert.contents import Contents, read_contents, read_shards
from pretrain.convert.export import (
    HEAD,
    Weights,
    Which,
    headless,
    read_checkpoint_weights,
    read_weights,
)
from pretrain.convert.geometry import check_weights, infer, other_architecture
from pretrain.convert.hints import Hints, hints_of_hub, hints_of_objects, of_buffers
from pretrain.convert.labels import (
    Labels,
    labels_of_hub,
    labels_of_metadata,
    labels_of_objects,
    read_labels,
)
from pretrain.convert.layouts import recognize
from pretrain.convert.names import Family, is_derived
from pretrain.convert.sources import (
    CONFIG_NAME,
    HUB_WEIGHTS,
    INDEX_SUFFIX,
    OURS,
    Source,
    is_export,
    read_config,
    source_of,
)
from pretrain.convert.unwrap import unwrap
from pretrain.convert.zero import read_zero
from pretrain.errors import ModelError

_KNOWN_PART = 0.5
"""A network of whose names we know less than this share is called another architecture."""


class Loaded(NamedTuple):
    """Weights, and all that their source says about them.

    Attributes:
        tensors: by official names, as stored: fp16 to fp64, on the CPU; the head may be absent.
        model: the network they fit; its ``num_classes`` is 1 where there is no head.
        family: which kind of network.
        labels: ids and names of the head's rows, as far as known.
        preprocessing: what evaluation does to an image; None if the source does not say.
        layout: what it was read as.
        notes: one sentence for people on each choice that was made.
    """

    tensors: dict[str, Tensor]
    model: ModelConfig
    family: Family
    labels: Labels
    preprocessing: dict[str, Any] | None
    layout: str
    notes: tuple[str, ...]

    @property
    def has_head(self) -> bool:
        """Whether there is a classifier."""
        return HEAD in self.tensors


class _Raw(NamedTuple):
    """What was found, before its names are known."""

    objects: Mapping[str, Any]
    hints: Hints
    labels: Labels
    layout: str | None
    notes: tuple[str, ...]


def load(
    path: Path,
    *,
    choice: Which | None = None,
    image_size: int | None = None,
    window_size: int | None = None,
    classes: Path | None = None,
) -> Loaded:
    """Read weights of any layout that is known here. Nothing that a file names is ever run.

    Args:
        path: a file, or a directory of ours, of DeepSpeed's, timm's or transformers'.
        choice: "raw" or "ema" weights, where a source has both; None takes the raw ones.
        image_size: side that they were trained on, pixels, where the source does not say.
        window_size: of V2, tokens, where the source does not say.
        classes: what the head's rows are, as `read_labels` takes it; goes before what the source
            says.

    Raises:
        ModelError: these are no weights of a Swin (the message says what they are), or they are not
            of as many classes as are given.
        CheckpointError: they cannot be read, or are damaged.
        DataError: ``classes`` cannot be read.
    """
    source = source_of(path)
    if source in OURS:
        loaded = _load_ours(path, choice, image_size, window_size)
    else:
        loaded = _load_other(path, source, choice, image_size, window_size)
    return loaded if classes is None else _with_classes(loaded, classes, path)


def _with_classes(loaded: Loaded, classes: Path, path: Path) -> Loaded:
    if not loaded.has_head:
        raise ModelError(f"{classes}: expected classes of a head, {path} has none; leave it out")
    labels, said = read_labels(classes, loaded.model.num_classes), loaded.labels.ids
    notes = loaded.notes
    if said is not None and said != labels.ids:
        notes += (f"classes taken from {classes}: the source names others, or another order",)
    return loaded._replace(labels=labels, notes=notes)


def _load_other(
    path: Path,
    source: Source,
    choice: Which | None,
    image_size: int | None,
    window_size: int | None,
) -> Loaded:
    raw = _read_raw(path, source)
    where = str(path)
    unwrapped = unwrap(raw.objects, choice, where)
    recognized = recognize(unwrapped.tensors)
    known = [name for name in unwrapped.tensors if not is_derived(name)]
    if len(recognized.unknown) > (1 - _KNOWN_PART) * len(known):
        raise ModelError(
            f"{where}: expected a Swin, got {other_architecture(list(unwrapped.tensors))}"
        )
    hints = of_buffers(raw.hints, unwrapped.tensors, recognized.layout, recognized.family)
    hints = hints._replace(
        image_size=image_size or hints.image_size, window_size=window_size or hints.window_size
    )
    model = infer(recognized.tensors, recognized.family, hints, where)
    check_weights(recognized.tensors, model, recognized.unknown, where)
    notes = (*raw.notes, *unwrapped.notes)
    if hints.image_size is None:
        notes += (f"image size not stated: taken for {model.image_size} pixels (--image-size)",)
    if recognized.family == "swinv2" and hints.trained_windows is None:
        notes += ("windows of an earlier training not stated: taken for the model's own",)
    rows = model.num_classes if HEAD in recognized.tensors else 0
    return Loaded(
        recognized.tensors,
        model,
        recognized.family,
        raw.labels.for_rows(rows),
        None,
        raw.layout or recognized.layout,
        notes,
    )


def _load_ours(
    path: Path, choice: Which | None, image_size: int | None, window_size: int | None
) -> Loaded:
    weights = _our_weights(path, choice)
    tensors, model, notes = weights.tensors, weights.model, ()
    family = _family(tensors)
    if model is None:  # a checkpoint away from its run
        hints = Hints(image_size=image_size, window_size=window_size)
        model = infer(tensors, family, hints, str(path))
        notes += ("without the config of its run: told by its weights",)
    if HEAD not in tensors:
        model = headless(model)
    check_weights(tensors, model, (), str(path))
    directory = path.parent if path.is_file() else path
    if not is_export(directory) and is_export(directory / "export"):
        directory = directory / "export"
    config = read_config(directory / CONFIG_NAME) if is_export(directory) else {}
    labels = Labels(weights.classes, tuple(config.get("class_names", ())) or None)
    return Loaded(
        tensors,
        model,
        family,
        labels.for_rows(model.num_classes if HEAD in tensors else 0),
        config.get("preprocessing"),
        source_of(path),
        notes,
    )


def _family(tensors: Mapping[str, Tensor]) -> Family:
    return "swinv2" if any(name.endswith(".attn.logit_scale") for name in tensors) else "swin"


def _our_weights(path: Path, choice: Which | None) -> Weights:
    """What was asked for; without a wish what a run exports, or a checkpoint's raw weights."""
    if choice is None:
        return read_weights(path)
    if source_of(path) in ("run", "checkpoint"):
        return read_checkpoint_weights(path, choice)
    config = read_config((path if path.is_dir() else path.parent) / CONFIG_NAME)
    exported = config.get("provenance", {}).get("weights", "raw")
    if exported != choice:
        raise ModelError(
            f"{path}: holds {exported} weights only; leave --weights out, or name the run"
        )
    return read_weights(path)


def _read_raw(path: Path, source: Source) -> _Raw:
    if source == "deepspeed":
        tensors, note = read_zero(path)
        return _Raw(tensors, Hints(), Labels(None, None), "deepspeed", (note,))
    if source == "hub":
        return _read_hub(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _Raw(read_shards(path).objects, Hints(), Labels(None, None), None, ())
    contents = read_contents(path)
    objects, metadata = contents
    labels = labels_of_metadata(metadata) or labels_of_objects(objects)
    return _Raw(objects, hints_of_objects(objects, metadata), labels, None, ())


def _read_hub(directory: Path) -> _Raw:
    """A directory of transformers' or timm's: a config and weights, whole or in shards."""
    contents = _hub_contents(directory)
    if not (directory / CONFIG_NAME).is_file():
        return _Raw(contents.objects, Hints(), labels_of_metadata(contents.metadata), None, ())
    config = read_config(directory / CONFIG_NAME)
    kind = config.get("model_type")
    if kind is not None and kind not in ("swin", "swinv2"):
        raise ModelError(f"{directory}: expected a Swin, its config.json says {kind!r}")
    return _Raw(contents.objects, hints_of_hub(config), labels_of_hub(config), None, ())


def _hub_contents(directory: Path) -> Contents:
    for name in HUB_WEIGHTS:
        if (directory / f"{name}{INDEX_SUFFIX}").is_file():
            return read_shards(directory / f"{name}{INDEX_SUFFIX}")
        if (directory / name).is_file():
            return read_contents(directory / name)
    raise AssertionError(directory)  # `source_of` saw one of them
