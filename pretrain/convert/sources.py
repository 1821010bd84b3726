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
HUB_WEIGHTS = (WEIGHTS_NAME, "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
HEAD_BYTES = 512
"""As many of a file as show what it is."""
ZERO_LATEST = "latest"
ZERO_STATES = "*_model_states.pt"

_MAGIC = (
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file of another framework"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"%PDF", "a PDF document"),
    (b"\x08", "an ONNX graph or another protocol buffer: weights go into it, not out"),
)
_LFS = b"version https://git-lfs"

Source = Literal["export", "checkpoint", "run", "deepspeed", "hub", "file"]
OURS = ("export", "checkpoint", "run")
"""Those that this program writes and reads by itself."""


def source_of(path: Path) -> Source:
    """Return what kind of thing holds the weights at ``path``; little of it is read.

    Returns:
        Ours: ``export`` (the directory, or its file of weights), ``checkpoint`` or ``run``. Others:
        a directory of ``deepspeed``'s; one of a ``hub``, with weights of usual names; a ``file`` of
        tensors.

    Raises:
        ModelError: there is nothing there, or nothing that is read here, which is named.
        CheckpointError: it cannot be looked into, or an export's config.json cannot be read.
    """
    if path.is_file():
        if path.name == WEIGHTS_NAME and is_export(path.parent):
            return "export"
        if not path.name.endswith(INDEX_SUFFIX):
            storage_of(path)
        return "file"
    if not path.exists():
        raise ModelError(f"{path.absolute()}: expected weights, found nothing there")
    try:
        found = _source_of_directory(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be looked into ({error.strerror})") from None
    if found is None:
        raise ModelError(
            f"{path.absolute()}: expected an export, a run, a checkpoint (ours or DeepSpeed's) or "
            f"a directory with {' or '.join(HUB_WEIGHTS)}, found none of them; name a file in it"
        )
    return found


def storage_of(path: Path) -> Literal["safetensors", "pickle"]:
    """Return how a file of tensors holds them, told by its content and never by its name.

    Raises:
        ModelError: it is something else, which is named.
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    # The length of a header may begin like a pickle or an archive; it is below 2^32.
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "pickle"
    raise ModelError(f"{path}: expected weights, got {_what_is(head)}")


def is_zero(directory: Path) -> bool:
    """Whether DeepSpeed wrote the directory, or one of its folders of a save."""
    return next(directory.glob(ZERO_STATES), None) is not None or (
        (directory / ZERO_LATEST).is_file()
        and next(directory.glob(f"*/{ZERO_STATES}"), None) is not None
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


def _source_of_directory(path: Path) -> Source | None:
    if is_export(path):
        return "export"
    if is_zero(path):
        return "deepspeed"
    if (path / MANIFEST_NAME).is_file() and (path / file_name(0)).is_file():
        return "checkpoint"
    run = RunDirectory(path)
    if run.exists or run.checkpoints_dir.is_dir():
        return "run"
    names = [name for weights in HUB_WEIGHTS for name in (weights, f"{weights}{INDEX_SUFFIX}")]
    if any((path / name).is_file() for name in names):
        return "hub"
    if next(path.glob("*-of-*.safetensors"), None) is not None:
        raise ModelError(f"{path}: shards without {WEIGHTS_NAME}{INDEX_SUFFIX}; copy it too")
    return None


def _what_is(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "an empty file; copy it again"
    if head.startswith(_LFS):
        return "a Git LFS pointer, a few lines in the place of the file; run git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page, perhaps a login or an error; download the file itself"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    if not head.strip(b"\0"):
        return "nothing but zeros; copy it again"
    if all(byte >= 32 or byte in b"\r\n\t" for byte in head):
        return f"text that begins {head[:40].decode('utf-8', 'replace')!r}"
    return "an unknown format; expected a file of torch.save, safetensors or a directory"
