"""One file out of the ranks' files: whole parameters, whatever the number of ranks that saved them.

Read and written parameter by parameter, so that memory holds one at a time.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretrain.checkpoint.layout import AVERAGE, KINDS
from pretrain.checkpoint.resume import CheckpointReader
from pretrain.checkpoint.snapshot import write_synced
from pretrain.errors import CheckpointError, StorageError

SUFFIX = ".safetensors"


def kinds_in(reader: CheckpointReader) -> tuple[str, ...]:
    """Return what a checkpoint keeps of every parameter."""
    return (*KINDS, AVERAGE) if reader.has_average else KINDS


def consolidate(reader: CheckpointReader, destination: Path, kinds: Sequence[str]) -> int:
    """Write whole parameters, fp32 in their shapes, to one safetensors file.

    With one kind tensors bear the parameters' names, with several ``kind|name``. Metadata tells
    step, samples, the state's counters and the classes.

    Args:
        reader: a checkpoint that was verified.
        destination: a file that does not exist, ending in ``.safetensors``.
        kinds: of `kinds_in`.

    Returns:
        Size of the file, bytes.

    Raises:
        CheckpointError: the checkpoint lacks a kind, or the destination is taken or badly named.
        StorageError: it cannot be written.
    """
    missing = [kind for kind in kinds if kind not in kinds_in(reader)]
    if missing:
        raise CheckpointError(
            f"{reader.directory}: keeps no {missing[0]}; it has {', '.join(kinds_in(reader))}"
        )
    if destination.suffix != SUFFIX:
        raise CheckpointError(f"{destination}: expected a name that ends in {SUFFIX}")
    if destination.exists():
        raise CheckpointError(f"{destination}: exists; choose a name where nothing is yet")
    staged = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        write_synced(staged, _content(reader, kinds))
        os.link(staged, destination)  # unlike a rename, never over something that came meanwhile
    except OSError as error:
        raise StorageError(f"{destination}: cannot be written ({error.strerror})") from None
    finally:
        staged.unlink(missing_ok=True)
    return destination.stat().st_size


def _content(reader: CheckpointReader, kinds: Sequence[str]) -> Iterator[bytes | memoryview]:
    wanted = [(kind, name) for kind in kinds for name in reader.shapes]
    entries: dict[str, object] = {"__metadata__": _metadata(reader)}
    start = 0
    for kind, name in wanted:
        shape = reader.shapes[name]
        end = start + 4 * math.prod(shape)
        key = name if len(kinds) == 1 else f"{kind}|{name}"
        entries[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for kind, name in wanted:
        flat = reader.read(kind, name, 0, math.prod(reader.shapes[name]))
        yield flat.numpy().data.cast("B")


def _metadata(reader: CheckpointReader) -> dict[str, str]:
    return {
        "format": "pt",
        "step": str(reader.step),
        "samples_consumed": str(reader.samples_consumed),
        "config_sha256": reader.config_sha256,
        "classes": json.dumps(reader.classes),
        "state": json.dumps(dict(reader.state)),
    }
