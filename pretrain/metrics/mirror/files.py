"""What Weights & Biases' own files of a run hold, read back: rows, config, axes, alerts, artifacts.

A ``.wandb`` file is a log in LevelDB's format: blocks of 32 KiB that hold parts of records, each
behind a header of check sum, length and kind. A record is a protocol buffer of wandb's.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_HEADER = b":W&B"
FILE_HEADER_BYTES = 7
BLOCK_BYTES = 32 * 2**10
_PART = struct.Struct("<IHB")
_DAMAGED, _WHOLE, _FIRST, _MIDDLE, _LAST = range(5)


@dataclass
class WandbFile:
    """The contents of one file.

    Attributes:
        path: of the file.
        run_id: of the run it is a part of; empty where its first records are lost.
        project: that the run belongs to; empty as above.
        rows: what was logged, by name, without wandb's own columns; in order.
        config: of the run, by name.
        metrics: the axis of each metric or group of metrics that has one, by name or pattern.
        hidden: metrics that wandb shows no panel of.
        alerts: texts, in order.
        artifacts: type, name, aliases and metadata of each, in order.
        exit_code: of the run; None if it was killed.
        damage: what is wrong in the middle of the file, a line each. That its end is torn, as a
            kill leaves it, is none.
    """

    path: Path
    run_id: str = ""
    project: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    alerts: list[str] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    damage: list[str] = field(default_factory=list)


def local_files(directory: Path) -> list[Path]:
    """The run's files below its ``wandb/``, of offline and online attempts, in order of start."""
    found = [*directory.glob("offline-run-*/*.wandb"), *directory.glob("run-*/*.wandb")]
    return sorted(found, key=lambda path: path.parent.name.removeprefix("offline-"))


def read_file(path: Path) -> WandbFile:
    """Read one file as far as it can be read; what cannot is in its ``damage``.

    Raises:
        OSError: it cannot be read at all.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    contents = WandbFile(path)
    for payload in payloads(path.read_bytes(), contents.damage):
        record = Record()
        try:
            record.ParseFromString(payload)
        except DecodeError:
            contents.damage.append(f"a record of {len(payload)} bytes is none of wandb's")
            continue
        _take(contents, record)
    return contents


def payloads(content: bytes, damage: list[str]) -> Iterator[bytes]:
    """The records of a log, each put together from its parts.

    After damage it goes on with the next block, and the next record that begins there.

    Args:
        content: of the file.
        damage: where what is wrong is told, a line each.
    """
    if content and not FILE_HEADER.startswith(content[: len(FILE_HEADER)]):
        damage.append("the file does not begin as wandb's do")
    payload: bytes | None = None
    for offset, kind, part in _parts(content, damage):
        if kind in (_WHOLE, _FIRST):
            if payload is not None:
                damage.append(f"a record before byte {offset} has no end")
            payload = part
        elif kind in (_MIDDLE, _LAST) and payload is not None:
            payload += part
        else:
            payload = None  # damage, or the rest of a record that began in it
        if kind in (_WHOLE, _LAST) and payload is not None:
            yield payload
            payload = None


def _parts(content: bytes, damage: list[str]) -> Iterator[tuple[int, int, bytes]]:
    """Offset, kind and bytes of every part; ``_DAMAGED`` where a block has to be given up."""
    position = FILE_HEADER_BYTES
    while position + _PART.size <= len(content):
        block_end = position - position % BLOCK_BYTES + BLOCK_BYTES
        if block_end - position < _PART.size:
            position = block_end  # too little room for a header: the writer left it empty
            continue
        checksum, length, kind = _PART.unpack_from(content, position)
        start = position + _PART.size
        if start + length <= len(content) and start + length <= block_end and kind in range(1, 5):
            part = content[start : start + length]
            if zlib.crc32(part, zlib.crc32(bytes([kind]))) == checksum:
                yield position, kind, part
                position = start + length
                continue
        elif start + length > len(content) and start + length <= block_end:
            return  # the last part is not all there: a kill
        if not any(content[position:]):
            return  # room that the file system gave and nobody wrote to: a crash of the machine
        damage.append(f"bytes {position} to {min(block_end, len(content))} are damaged")
        yield position, _DAMAGED, b""
        position = block_end


def _take(contents: WandbFile, record: Any) -> None:
    """Add one record to the contents."""
    kind = record.WhichOneof("record_type")
    if kind == "history":
        items = {_name(item): json.loads(item.value_json) for item in record.history.item}
        contents.rows.append({key: items[key] for key in items if not key.startswith("_")})
    elif kind == "run":
        contents.run_id, contents.project = record.run.run_id, record.run.project
        contents.config |= _values(record.run.config)
    elif kind == "config":
        contents.config |= _values(record.config)
    elif kind == "metric":
        metric = record.metric
        if metric.step_metric:
            contents.metrics[metric.glob_name or metric.name] = metric.step_metric
        if metric.options.hidden:
            contents.hidden.add(metric.name)
    elif kind == "alert":
        contents.alerts.append(record.alert.text)
    elif kind == "artifact":
        artifact = record.artifact
        contents.artifacts.append(
            {
                "type": artifact.type,
                "name": artifact.name,
                "aliases": sorted(artifact.aliases),
                "metadata": json.loads(artifact.metadata or "{}"),
                "references": [entry.ref for entry in artifact.manifest.contents],
            }
        )
    elif kind == "exit":
        contents.exit_code = record.exit.exit_code


def _name(item: Any) -> str:
    return "/".join(item.nested_key) or item.key


def _values(config: Any) -> dict[str, Any]:
    values = {_name(item): json.loads(item.value_json) for item in config.update}
    return {name: values[name] for name in values if name != "_wandb"}
