"""Weights of any layout, told by what is there: official names, the model, the classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pretrain.config.schema import ModelConfig
from pretrain.convert.contents import INDEX_SUFFIX, Contents, read_contents, read_shards
from pretrain.convert.export import Weights, Which, read_checkpoint_weights, read_weights
from pretrain.convert.geometry import check_weights, infer, other_architecture
from pretrain.convert.hints import Hints, hints_of_hub, hints_of_objects, of_buffers
from pretrain.convert.labels import Labels, labels_of_hub, labels_of_metadata, labels_of_objects
from pretrain.convert.layouts import recognize
from pretrain.convert.names import Family, is_derived
from pretrain.convert.sources import CONFIG_NAME, WEIGHTS_NAME, is_export, read_config, source_of
from pretrain.convert.unwrap import unwrap
from pretrain.convert.zero import is_zero, read_zero
from pretrain.errors import ModelError
from pretrain.models.variants import shape_of

_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
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
        return "head.weight" in self.tensors


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
) -> Loaded:
    """Read weights of any layout that is known here. Nothing that a file names is ever run.

    Args:
        path: a file, or a directory of ours, of DeepSpeed's, timm's or transformers'.
        choice: "raw" or "ema" weights, where a source has both; None takes the raw ones.
        image_size: side that they were trained on, pixels, where the source does not say.
        window_size: of V2, tokens, where the source does not say.

    Raises:
        ModelError: these are no weights of a Swin; the message says what they are.
        CheckpointError: they cannot be read, or are damaged.
    """
    if not path.exists():
        raise ModelError(f"{path.absolute()}: expected weights, found nothing there")
    if _is_ours(path):
        return _load_ours(path, choice)
    raw = _read_raw(path)
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
    rows = model.num_classes if "head.weight" in recognized.tensors else 0
    return Loaded(
        recognized.tensors,
        model,
        recognized.family,
        raw.labels.for_rows(rows),
        None,
        raw.layout or recognized.layout,
        notes,
    )


def _is_ours(path: Path) -> bool:
    if path.is_file():
        return (
            path.name == WEIGHTS_NAME
            and (path.parent / CONFIG_NAME).is_file()
            and is_export(path.parent)
        )
    if is_zero(path) or ((path / CONFIG_NAME).is_file() and not is_export(path)):
        return False
    try:
        source_of(path)
    except ModelError:
        return False
    return True


def _load_ours(path: Path, choice: Which | None) -> Loaded:
    weights = _our_weights(path, choice)
    if weights.model is None:
        raise ModelError(f"{path}: without the config of its run; convert the run directory itself")
    check_weights(weights.tensors, weights.model, (), str(path))
    directory = path.parent if path.is_file() else path
    if not is_export(directory) and is_export(directory / "export"):
        directory = directory / "export"
    config = read_config(directory / CONFIG_NAME) if is_export(directory) else {}
    labels = Labels(weights.classes, tuple(config.get("class_names", ())) or None)
    return Loaded(
        weights.tensors,
        weights.model,
        "swinv2" if shape_of(weights.model).family == "v2" else "swin",
        labels.for_rows(weights.model.num_classes),
        config.get("preprocessing"),
        source_of(path),
        (),
    )


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


def _read_raw(path: Path) -> _Raw:
    if path.is_dir():
        if is_zero(path):
            tensors, note = read_zero(path)
            return _Raw(tensors, Hints(), Labels(None, None), "deepspeed", (note,))
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
    for name in _HUB_WEIGHTS:
        if (directory / f"{name}{INDEX_SUFFIX}").is_file():
            return read_shards(directory / f"{name}{INDEX_SUFFIX}")
        if (directory / name).is_file():
            return read_contents(directory / name)
    parts = sorted(path.name for path in directory.glob("*-of-*.safetensors"))
    if parts:
        raise ModelError(f"{directory}: shards without {WEIGHTS_NAME}{INDEX_SUFFIX}; copy it too")
    raise ModelError(
        f"{directory.absolute()}: expected an export, a run, a checkpoint (ours or DeepSpeed's) or "
        f"a directory with {' or '.join(_HUB_WEIGHTS)}, found none of them; name a file in it"
    )
