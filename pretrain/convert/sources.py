"""What weights can be read from, told apart by names alone. No torch."""

import json
from pathlib import Path
from typing import Any, Literal

from pretrain.checkpoint.layout import MANIFEST_NAME, file_name
from pretrain.errors import CheckpointError, ModelError
from pretrain.run_directory import RunDirectory

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
FORMAT = "swin-pretrain export"
PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".bin", ".ckpt", ".tar")

Source = Literal["file", "export", "checkpoint", "run"]


def source_of(path: Path) -> Source:
    """Return what kind of thing holds the weights at ``path``.

    Raises:
        ModelError: there is nothing there, or nothing that is read here.
        CheckpointError: it looks like an export and its config.json cannot be read.
    """
    if path.is_file():
        return _source_of_file(path)
    if not path.exists():
        raise ModelError(f"{path.absolute()}: expected weights, found nothing there")
    if is_export(path):
        return "export"
    if (path / MANIFEST_NAME).is_file() and (path / file_name(0)).is_file():
        return "checkpoint"
    run = RunDirectory(path)
    if run.exists or run.checkpoints_dir.is_dir():
        return "run"
    raise ModelError(
        f"{path.absolute()}: expected an export ({CONFIG_NAME} and {WEIGHTS_NAME}), a run "
        "directory or a checkpoint, found none of them"
    )


def holds_weights(run: RunDirectory) -> bool:
    """Whether a run has an export or a checkpoint; what is in it is not looked at."""
    return is_export(run.export_dir) or run.newest_checkpoint_step() is not None


def is_export(directory: Path) -> bool:
    """Whether both files are there; a config.json without our format is another program's.

    Raises:
        CheckpointError: config.json cannot be read.
    """
    if not (directory / WEIGHTS_NAME).is_file() or not (directory / CONFIG_NAME).is_file():
        return False
    return read_config(directory / CONFIG_NAME).get("format") == FORMAT


def read_config(path: Path) -> dict[str, Any]:
    """Return the object in an export's config.json.

    Raises:
        CheckpointError: it cannot be read, or is no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got a {type(config).__name__}")
    return config


def _source_of_file(path: Path) -> Source:
    if path.suffix in PICKLES:
        raise ModelError(
            f"{path}: a {path.suffix} file can run code when it is read, so it is not; expected "
            "safetensors, an export, a run or a checkpoint"
        )
    if path.name == WEIGHTS_NAME and is_export(path.parent):
        return "export"
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: expected a .safetensors file or a directory")
    return "file"
