"""Weights written in any layout: staged beside the destination, which gets them whole or not."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain.convert.documents import (
    huggingface_config,
    huggingface_preprocessor,
    model_card,
    preprocessing_of,
    timm_config,
)
from pretrain.convert.export import write_export
from pretrain.convert.graph import write_onnx
from pretrain.convert.labels import Labels
from pretrain.convert.layouts import to_layout
from pretrain.convert.names import Layout
from pretrain.convert.read import Loaded
from pretrain.convert.sources import CONFIG_NAME, WEIGHTS_NAME
from pretrain.convert.targets import DIRECTORIES, Target, check_target
from pretrain.errors import CheckpointError, ModelError
from pretrain.files import sync
from pretrain.models.variants import shape_of

_ENDINGS = (".pth", ".pt", ".safetensors")


def check_destination(destination: Path, target: Target) -> None:
    """Refuse a destination before anything is read.

    Raises:
        CheckpointError: it exists, or there is no directory to put it in.
        ModelError: a file's name does not say how to write it.
    """
    if destination.exists() or destination.is_symlink():
        raise CheckpointError(f"{destination}: exists; give another name or move it away")
    if not destination.absolute().parent.is_dir():
        raise CheckpointError(f"{destination.absolute().parent}: not a directory; make it first")
    if (target == "onnx") != (destination.suffix == ".onnx"):
        raise ModelError(f"{destination}: expected a name in .onnx for onnx, and for nothing else")
    if target not in (*DIRECTORIES, "onnx") and destination.suffix not in _ENDINGS:
        raise ModelError(f"{destination}: {target} is a file; expected a name in {_ENDINGS}")
    if target in DIRECTORIES and destination.suffix in _ENDINGS:
        raise ModelError(f"{destination}: {target} is a directory; expected a name without ending")


def write(
    loaded: Loaded, destination: Path, target: Target, *, provenance: Mapping[str, Any]
) -> None:
    """Write weights in a layout.

    Args:
        loaded: what to write.
        destination: a path where nothing is; the directory that holds it exists.
        target: the layout.
        provenance: where the weights come from; kept by our export and the model card.

    Raises:
        ModelError: the layout has no place for these weights.
        CheckpointError: there is something at the destination, or it cannot be written.
    """
    check_destination(destination, target)
    check_target(loaded.model, target)
    if target == "torchvision" and not loaded.has_head:
        raise ModelError(
            "torchvision: its networks always have a head, these weights none; write official, "
            "timm, huggingface, mmdetection or safetensors"
        )
    if target == "safetensors":
        _write_ours(loaded, destination, provenance)
        return
    tensors = {}
    if target != "onnx":
        tensors = to_layout(loaded.tensors, target, loaded.family, shape_of(loaded.model))
    staged = destination.with_name(f"{destination.name}.tmp")
    try:
        _clear(staged)
        if target == "onnx":
            write_onnx(loaded, staged)
        elif target in DIRECTORIES:
            staged.mkdir()
            _fill(staged, tensors, loaded, target, provenance)
            for path in staged.iterdir():
                sync(path)
        elif destination.suffix == ".safetensors":
            save_file(tensors, staged, metadata=_metadata(loaded))
        else:
            torch.save(_pickled(tensors, loaded, target), staged)
        sync(staged)
        if destination.exists():
            raise CheckpointError(f"{destination}: came into being while this was written")
        staged.rename(destination)
        sync(destination.absolute().parent)
    except OSError as error:
        raise CheckpointError(f"{destination}: cannot be written ({error})") from None
    finally:
        _clear(staged)


def _write_ours(loaded: Loaded, destination: Path, provenance: Mapping[str, Any]) -> None:
    ids = loaded.labels.ids or ()
    write_export(
        destination,
        loaded.tensors,
        model=loaded.model,
        classes=ids,
        class_names=(loaded.labels.names or ids) if ids else (),
        preprocessing=preprocessing_of(loaded.model, loaded.preprocessing),
        provenance=provenance,
    )


def _fill(
    directory: Path,
    tensors: dict[str, Tensor],
    loaded: Loaded,
    target: Layout,
    provenance: Mapping[str, Any],
) -> None:
    """Write a hub's directory: weights, config and what else belongs to it."""
    model, labels, has_head = loaded.model, loaded.labels, loaded.has_head
    preprocessing = preprocessing_of(model, loaded.preprocessing)
    save_file(tensors, directory / WEIGHTS_NAME, metadata={"format": "pt"})
    if target == "timm":
        config = timm_config(model, labels, preprocessing, has_head=has_head)
        _write_json(directory / CONFIG_NAME, config)
        return
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    config = huggingface_config(model, labels, has_head=has_head)
    _write_json(directory / CONFIG_NAME, {**config, "dtype": dtype, "torch_dtype": dtype})
    _write_json(directory / "preprocessor_config.json", huggingface_preprocessor(preprocessing))
    card = model_card(model, labels, preprocessing, provenance, has_head=has_head)
    (directory / "README.md").write_text(card, encoding="utf-8")


def _pickled(tensors: dict[str, Tensor], loaded: Loaded, target: Layout) -> dict[str, Any]:
    """What goes into a .pth; labels where readers of the layout expect or tolerate them."""
    labels = _said(loaded.labels)
    if target == "official":
        return {"model": tensors, "image_size": loaded.model.image_size, **labels}
    if target == "mmdetection":
        meta: dict[str, Any] = {}
        if "classes" in labels:
            meta["class_ids"] = labels["classes"]
        if loaded.labels:
            names = loaded.labels.names or loaded.labels.ids or ()
            meta["dataset_meta"] = {"classes": list(names)}
        return {"meta": meta, "state_dict": tensors}
    return tensors  # torchvision loads the file as it is: there is no place for more


def _said(labels: Labels) -> dict[str, list[str]]:
    pairs = (("classes", labels.ids), ("class_names", labels.names))
    return {key: list(values) for key, values in pairs if values is not None}


def _metadata(loaded: Loaded) -> dict[str, str]:
    texts = {key: json.dumps(values) for key, values in _said(loaded.labels).items()}
    return {"format": "pt", "image_size": str(loaded.model.image_size), **texts}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
