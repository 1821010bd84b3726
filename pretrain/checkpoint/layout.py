"""What a checkpoint directory holds: its names and its manifest. No torch, no I/O of tensors.

A checkpoint is a directory ``step_00001000`` with one ``rank_00000.safetensors`` per rank that
saved it, and ``manifest.json``, which is written last and holds the digest of every file. A tensor
is a *fragment*: key ``kind|parameter name|start``, flat fp32 values of that parameter from element
``start`` on. Which rank holds which fragment means nothing to a reader.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError

FORMAT = 3
"""Version of the format that is written; older ones are read, newer ones refused."""
_ADDED_IN = {"attempt": 3, "accuracy_fraction": 3}
"""Fields that manifests of an older format do not have."""
MANIFEST_NAME = "manifest.json"
TEMPORARY_SUFFIX = ".tmp"
"""Ended the name of a directory that was being written, before format 3."""
KINDS = ("master", "exp_avg", "exp_avg_sq")
"""What is kept of every parameter: the fp32 weight and AdamW's two moments."""
AVERAGE = "ema"
"""What a run that averages its weights keeps besides, of every parameter too (from format 2)."""

_DIRECTORY_NAME = re.compile(r"step_(\d{8,18})")
_FILE_NAME = re.compile(r"rank_\d{5,9}\.safetensors")
_MANIFEST_BYTES_MAX = 256 * 2**20
_HEADER_BYTES_MAX = 100 * 10**6  # the safetensors format's own limit


def directory_name(step: int) -> str:
    """Return the name of a step's checkpoint directory."""
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step a directory name stands for, or None for any other name."""
    match = _DIRECTORY_NAME.fullmatch(name)
    if match is None or directory_name(int(match[1])) != name:
        return None
    return int(match[1])


def file_name(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rank_{rank:05d}.safetensors"


@dataclass(frozen=True)
class SavedFile:
    """One rank's file, as it was written.

    Attributes:
        bytes: size.
        sha256: digest of the whole file, hexadecimal.
        fragments: number of elements by fragment key.
    """

    bytes: int
    sha256: str
    fragments: dict[str, int]


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint says about itself.

    Attributes:
        step: optimizer steps the run had taken, skipped ones included.
        samples_consumed: samples the run had trained on: the whole position in the data.
        world_size: ranks that saved it; any number may load it.
        config_sha256: digest of the run's config, hexadecimal.
        classes: ordered WordNet ids that the head's rows stand for.
        shapes: full shape of every parameter by name.
        state: counters of the engine and the trainer, JSON values.
        files: files by name.
        format: version of the format.
        attempt: number of the attempt that owned the directory when it was saved, from 1; 0 where
            nobody took note (before format 3).
        accuracy_fraction: top-1 that was measured after this very step, 0 to 1; None without.
    """

    step: int
    samples_consumed: int
    world_size: int
    config_sha256: str
    classes: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    state: dict[str, Any]
    files: dict[str, SavedFile]
    format: int = FORMAT
    attempt: int = 0
    accuracy_fraction: float | None = None

    def to_text(self) -> str:
        """Return the manifest file's text, which ends in its own digest."""
        body = asdict(self)
        for field, version in _ADDED_IN.items():
            if self.format < version:
                del body[field]
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        return json.dumps({"manifest": body, "sha256": digest}, indent=1, sort_keys=True) + "\n"


def parse_key(key: str) -> tuple[str, str, int]:
    """Split a fragment key into kind, parameter name and start.

    Raises:
        CheckpointError: it is no fragment key.
    """
    kind, _, rest = key.partition("|")
    name, _, start = rest.rpartition("|")
    if kind not in (*KINDS, AVERAGE) or not name or not (start.isascii() and start.isdigit()):
        raise CheckpointError(f"fragment {key!r}: expected kind|parameter name|start")
    return kind, name, int(start)


def read_fragments(path: Path) -> dict[str, int]:
    """Read from a rank's file, without its values, the number of elements by fragment key.

    Raises:
        CheckpointError: it is not such a file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _HEADER_BYTES_MAX:
            raise CheckpointError(f"{path}: not a safetensors file")
        text = file.read(length)
    try:
        return {
            key: math.prod(entry["shape"])
            for key, entry in json.loads(text).items()
            if key != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: its header is damaged") from None


def read_manifest(directory: Path) -> CheckpointManifest:
    """Read a checkpoint's manifest and check that it is whole and consistent.

    Every change of its text is noticed. The files it names are checked for presence and size only;
    digests are `pretrain.checkpoint.resume`'s.

    Raises:
        CheckpointError: it is missing, damaged, of a newer format, at odds with the directory's
            name, or its files are missing, of another size, or more than it names.
    """
    path = directory / MANIFEST_NAME
    try:
        if path.stat().st_size > _MANIFEST_BYTES_MAX:
            raise CheckpointError(f"{path}: larger than any manifest; it is damaged")
        text = path.read_text(encoding="utf-8")
        manifest = _parse(text, path)
        if step_of(directory.name) not in (None, manifest.step):
            raise CheckpointError(f"{path}: the manifest is of step {manifest.step}")
        check_coverage(manifest, path)
        _check_files(manifest, directory)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is not complete") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return manifest


def _parse(text: str, path: Path) -> CheckpointManifest:
    manifest = None
    try:
        body = json.loads(text)["manifest"]
        version = body["format"]
        if isinstance(version, int) and version > FORMAT:
            raise CheckpointError(
                f"{path}: written in format {version}, this version reads up to {FORMAT}; "
                "use the version of this software that wrote it, or a newer one"
            )
        manifest = CheckpointManifest(
            **{
                **body,
                "classes": tuple(body["classes"]),
                "shapes": {name: tuple(shape) for name, shape in body["shapes"].items()},
                "files": {name: SavedFile(**file) for name, file in body["files"].items()},
            }
        )
        intact = manifest.to_text() == text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if manifest is None or not intact:
        raise CheckpointError(f"{path}: damaged: its content does not match its own digest")
    return manifest


def _check_files(manifest: CheckpointManifest, directory: Path) -> None:
    problems = []
    for name, file in manifest.files.items():
        path = directory / name
        if not _FILE_NAME.fullmatch(name):
            problems.append(f"{directory}: {name!r} is not a name that a checkpoint's file has")
        elif path.is_symlink() or not path.is_file():
            problems.append(f"{path}: missing")
        elif path.stat().st_size != file.bytes:
            problems.append(f"{path}: expected {file.bytes} bytes, got {path.stat().st_size}")
    present = {path.name for path in directory.glob("*.safetensors")}
    extra = sorted(present - manifest.files.keys())
    problems += [f"{directory / name}: not named in the manifest" for name in extra]
    if problems:
        raise CheckpointError("\n".join(problems))


def check_coverage(manifest: CheckpointManifest, path: Path) -> None:
    """Check that the fragments hold every element of every kind exactly once.

    Raises:
        CheckpointError: names the first parameter with a gap or an overlap.
    """
    index = fragment_index(manifest.files)
    kinds = (*KINDS, AVERAGE) if any(kind == AVERAGE for kind, _ in index) else KINDS
    for name, shape in manifest.shapes.items():
        for kind in kinds:
            reached = 0
            for start, count, _ in index.pop((kind, name), []):
                if start != reached or count <= 0:
                    break
                reached += count
            if reached != math.prod(shape):
                raise CheckpointError(
                    f"{path}: {kind} of {name}: expected elements 0 to {math.prod(shape)} once "
                    f"each, got a gap or an overlap at {reached}"
                )
    if index:
        kind, name = next(iter(index))
        raise CheckpointError(f"{path}: {kind} of {name}: no such parameter in the manifest")


def fragment_index(
    files: Mapping[str, SavedFile],
) -> dict[tuple[str, str], list[tuple[int, int, str]]]:
    """Return, by kind and parameter name, its fragments: start, count, file name; by start."""
    index: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
    for file, saved in files.items():
        for key, count in saved.fragments.items():
            kind, name, start = parse_key(key)
            index.setdefault((kind, name), []).append((start, count, file))
    for fragments in index.values():
        fragments.sort()
    return index
