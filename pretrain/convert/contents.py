"""What one file holds: tensors and what stands beside them, or one line that says why not."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from pretrain.convert.pickles import load_pickled
from pretrain.convert.sources import storage_of
from pretrain.errors import CheckpointError, ModelError

TENSORS_MAX = 10_000


class Contents(NamedTuple):
    """Of a file: a dict as it was saved, and the text beside it.

    Attributes:
        objects: names to tensors, perhaps inside other dicts.
        metadata: what a safetensors file says about itself.
    """

    objects: dict[str, Any]
    metadata: dict[str, str]


def read_contents(path: Path) -> Contents:
    """Read a file of tensors, told by its content and never by its name.

    Raises:
        ModelError: it is something else, which is named; or a pickle that would run code.
        CheckpointError: it cannot be read or is cut off.
    """
    if storage_of(path) == "safetensors":
        return _read_safetensors(path)
    objects = load_pickled(path)
    if not isinstance(objects, dict):
        kind = type(objects).__name__
        raise ModelError(f"{path}: expected named tensors, got a {kind}; save a state_dict")
    return Contents(objects, {})


def read_shards(index: Path) -> Contents:
    """Read tensors that are spread over several files, by the index beside them.

    Raises:
        ModelError: the index names no files, or files elsewhere, or tensors that are not there.
        CheckpointError: the index or a file cannot be read or is missing.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(file) for file in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of shards ({error})") from None
    outside = [file for file in files if "/" in file or "\\" in file or file.startswith(".")]
    if outside or not files:
        raise ModelError(f"{index}: expected files beside it, got {outside or 'none'}")
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of {len(files)} shards are missing: "
            f"{', '.join(missing[:4])}; copy them here too"
        )
    tensors: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for file in files:
        contents = read_contents(index.parent / file)
        tensors |= contents.objects
        metadata |= contents.metadata
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        raise ModelError(f"{index}: names {lost[0]} and {len(lost) - 1} more that no shard holds")
    return Contents(tensors, metadata)


def _read_safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > TENSORS_MAX:
                raise ModelError(
                    f"{path}: {len(names)} tensors; no Swin has more than {TENSORS_MAX}"
                )
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: cannot be read as safetensors, cut off? ({reason})"
        ) from None
    return Contents(tensors, metadata)
