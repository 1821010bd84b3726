"""What one file holds: tensors and what stands beside them, or one line that says why not."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from pretrain.convert.pickles import load_pickled
from pretrain.errors import CheckpointError, ModelError

_HEAD_BYTES = 512
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
TENSORS_MAX = 10_000
INDEX_SUFFIX = ".index.json"


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
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    # The length of a header may begin like a pickle or an archive; it is below 2^32.
    if head[4:9] == b"\0\0\0\0{":
        return _read_safetensors(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        objects = load_pickled(path)
        if not isinstance(objects, dict):
            kind = type(objects).__name__
            raise ModelError(f"{path}: expected named tensors, got a {kind}; save a state_dict")
        return Contents(objects, {})
    raise ModelError(f"{path}: expected weights, got {_what_is(head)}")


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
