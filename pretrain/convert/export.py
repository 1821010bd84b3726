"""Exports: finished weights as safetensors beside a config.json that says all there is to know.

config.json holds: ``format``, ``format_version``; ``weights`` (file, bytes, sha256); ``model`` (the
`ModelConfig`); ``classes`` (WordNet ids in the order of the head's rows), ``class_names``,
``class_order_sha256``; ``preprocessing``; ``provenance``. Weights without a head (of masked-image
pre-training, or a detector's) are an export too: without classes, and ``model.num_classes`` is 1.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.checkpoint.layout import AVERAGE
from pretrain.checkpoint.resume import CheckpointReader, newest_valid, verify
from pretrain.config.schema import ModelConfig
from pretrain.convert.sources import (
    CONFIG_NAME,
    FORMAT,
    WEIGHTS_NAME,
    is_export,
    read_config,
    source_of,
)
from pretrain.data.manifest import class_order_sha256
from pretrain.errors import CheckpointError, ModelError
from pretrain.files import sync
from pretrain.metrics.jsonl import plain
from pretrain.models.masked import encoder_weights
from pretrain.run_directory import RunDirectory

FORMAT_VERSION = 1

Which = Literal["ema", "raw"]
HEAD = "head.weight"
KINDS: dict[Which, str] = {"ema": AVERAGE, "raw": "master"}
"""What a checkpoint calls them."""


class Weights(NamedTuple):
    """Weights read back.

    Attributes:
        tensors: state dict, official names, on the CPU; perhaps without a head.
        classes: WordNet ids in the order of the head's rows; None if the source does not say, or
            has no head, as after masked pre-training.
        model: the config they were trained with; None if the source does not say.
    """

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None
    model: ModelConfig | None


def write_export(
    directory: Path,
    weights: Mapping[str, Tensor],
    *,
    model: ModelConfig,
    classes: Sequence[str],
    class_names: Sequence[str],
    preprocessing: Mapping[str, object],
    provenance: Mapping[str, object],
) -> None:
    """Write an export, replacing an earlier one; rank zero only.

    All files are staged in a directory beside it and synced before it gets its name, so that an
    export is whole or absent. A kill in the instant of a replacement can leave it absent.

    Args:
        directory: the export's; its parent must exist.
        weights: state dict by official names, any device; perhaps without a head.
        model: the config of the network.
        classes: WordNet ids in the order of the head's rows; none at all if unknown, or without
            a head.
        class_names: names for people, in the same order; none without classes.
        preprocessing: what evaluation does to an image: ``image_size``, ``resize`` (short side, or
            None for squashing), ``mean``, ``std`` on the scale 0 to 1.
        provenance: where the weights come from, such as run, step and accuracy.

    Raises:
        ModelError: classes and names do not fit the model, or a weight is not finite.
        CheckpointError: ``directory`` holds something that is no export, or cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    _check_tensors(tensors)
    if HEAD not in tensors:
        model = headless(model)
        if classes:
            raise ModelError(f"export: expected no classes without a head, got {len(classes)}")
    _check_classes(model, classes, class_names)
    if directory.exists() and not is_export(directory):
        raise CheckpointError(
            f"{directory}: expected an export or nothing, found something else; move it away"
        )
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model.model_dump(mode="json"),
        "classes": list(classes),
        "class_names": list(class_names),
        "class_order_sha256": class_order_sha256(classes),
        "preprocessing": dict(preprocessing),
        "provenance": dict(provenance),
    }
    staged = directory.with_name(f"{directory.name}.tmp")
    try:
        _stage(staged, tensors, config)
        _commit(staged, directory)
    except OSError as error:
        raise CheckpointError(f"{directory}: the export cannot be written ({error})") from None


def read_weights(path: Path) -> Weights:
    """Read weights from an export, a run (its export, else its newest checkpoint) or a checkpoint.

    Digests are verified. Nothing is ever unpickled. Other layouts are `pretrain.convert.read`'s.

    Args:
        path: the directory, or an export's file of weights.

    Raises:
        ModelError: there is nothing there, or none of these.
        CheckpointError: it is damaged, or of a newer version of this program.
    """
    source = source_of(path)
    if source == "export":
        return _read_export(path if path.is_dir() else path.parent)
    if source == "checkpoint":
        return _read_checkpoint(verify(path), RunDirectory(path.absolute().parents[1]))
    if source == "run":
        return _read_run(RunDirectory(path))
    raise ModelError(f"{path}: expected an export, a run or a checkpoint")


def headless(model: ModelConfig) -> ModelConfig:
    """The config of the same network where its weights have no head: of one class, by convention.

    So that nothing follows from a number of classes that no tensor shows.
    """
    return model.model_copy(update={"num_classes": 1})


def read_checkpoint_weights(path: Path, which: Which) -> Weights:
    """Read one kind of weights from a checkpoint, or from the newest sound one of a run.

    Args:
        path: the directory.
        which: the weights as they were trained, or the run's moving average of them.

    Raises:
        ModelError: the run kept no average.
        CheckpointError: there is no sound checkpoint.
    """
    if source_of(path) == "run":
        run = RunDirectory(path)
        return _read_checkpoint(_newest(run, "a sound checkpoint"), run, which)
    return _read_checkpoint(verify(path), RunDirectory(path.absolute().parents[1]), which)


def _read_run(run: RunDirectory) -> Weights:
    if is_export(run.export_dir):
        return _read_export(run.export_dir)
    return _read_checkpoint(_newest(run, "an export or a sound checkpoint"), run)


def _newest(run: RunDirectory, expected: str) -> CheckpointReader:
    reader, refusals = newest_valid(run.checkpoints_dir)
    if reader is None:
        reasons = "".join(f"\n{refusal}" for refusal in refusals)
        raise CheckpointError(f"{run.path}: expected {expected}, found none{reasons}")
    return reader


def _read_checkpoint(reader: CheckpointReader, run: RunDirectory, which: Which = "raw") -> Weights:
    with closing(reader):
        if which == "ema" and not reader.has_average:
            raise ModelError(
                f"{reader.directory}: has no ema weights, as the run kept no average (ema.decay); "
                "--weights raw takes the weights as they were trained"
            )
        saved = {name: reader.full(KINDS[which], name) for name in reader.shapes}
        tensors = encoder_weights(saved)
        classes = reader.classes if "head.weight" in tensors else ()
        model = run.read_config().model if run.exists else None
        return Weights(tensors, classes or None, model)


def _read_export(directory: Path) -> Weights:
    path = directory / CONFIG_NAME
    config = read_config(path)
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version: expected {FORMAT_VERSION}, "
            f"got {config.get('format_version')!r}; was it written by a newer version?"
        )
    try:
        model = ModelConfig.model_validate_json(json.dumps(config["model"]))
        classes = tuple(str(name) for name in config["classes"])
        sha256, bytes_ = config["weights"]["sha256"], config["weights"]["bytes"]
        order_sha256 = config["class_order_sha256"]
    except (KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged or edited ({reason})") from None
    if class_order_sha256(classes) != order_sha256 or len(classes) not in (0, model.num_classes):
        raise CheckpointError(f"{path}: classes do not match class_order_sha256 or num_classes")
    weights = directory / WEIGHTS_NAME
    if weights.stat().st_size != bytes_ or _sha256(weights) != sha256:
        raise CheckpointError(f"{weights}: damaged: not the file that {CONFIG_NAME} describes")
    tensors = _load(weights)
    if classes and HEAD not in tensors:
        raise CheckpointError(f"{path}: names {len(classes)} classes of weights without a head")
    return Weights(tensors, classes or None, model)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from None


def _check_classes(model: ModelConfig, classes: Sequence[str], class_names: Sequence[str]) -> None:
    if not classes and not class_names:
        return  # weights from elsewhere, which do not say
    for what, values in (("classes", classes), ("class names", class_names)):
        if len(values) != model.num_classes:
            raise ModelError(f"export: expected {model.num_classes} {what}, got {len(values)}")
    if len(set(classes)) < len(classes):
        repeated = next(name for name in classes if list(classes).count(name) > 1)
        raise ModelError(f"export: class {repeated} is listed twice")


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise ModelError("export: expected weights, got none")
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelError(
            f"export: {broken[0]} and {len(broken) - 1} more weights are not finite; "
            "go back to an earlier checkpoint"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stage(staged: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    path = staged / WEIGHTS_NAME
    # Readers of this file alone still learn what it is; safetensors wants all values as text.
    metadata = {
        "format": "pt",
        "variant": str(config["model"]["variant"]),
        "class_order_sha256": str(config["class_order_sha256"]),
        "classes": json.dumps(config["classes"]),
        "class_names": json.dumps(config["class_names"]),
        "image_size": str(config["model"]["image_size"]),
    }
    save_file(tensors, path, metadata=metadata)
    weights = {"file": WEIGHTS_NAME, "bytes": path.stat().st_size, "sha256": _sha256(path)}
    document = plain({**config, "weights": weights})
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    (staged / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def _commit(staged: Path, directory: Path) -> None:
    for path in (*staged.iterdir(), staged):
        sync(path)
    if directory.exists():
        old = directory.with_name(f"{directory.name}.old.tmp")
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
        staged.rename(directory)
        shutil.rmtree(old)
    else:
        staged.rename(directory)
    sync(directory.parent)
