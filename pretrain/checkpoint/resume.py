"""Finds the newest checkpoint that is what was written, and reads any part of it.

Needs no process group, except `newest_valid_for_all`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain import dist
from pretrain.checkpoint.layout import (
    AVERAGE,
    fragment_index,
    read_manifest,
    step_of,
)
from pretrain.checkpoint.soundness import first_damage
from pretrain.errors import CheckpointError


class CheckpointReader:
    """A checkpoint's content, assembled from its fragments as it is asked for.

    Args:
        directory: the checkpoint.

    Attributes:
        directory: the checkpoint.
        manifest: what it says about itself.

    Raises:
        CheckpointError: its manifest or the presence of its files is not in order. Digests are
            not checked here: see `newest_valid` and `verify`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = read_manifest(directory)
        self._index = fragment_index(self.manifest.files)
        self._open: dict[str, Any] = {}

    @property
    def step(self) -> int:
        """Optimizer steps the run had taken."""
        return self.manifest.step

    @property
    def samples_consumed(self) -> int:
        """Samples the run had trained on."""
        return self.manifest.samples_consumed

    @property
    def config_sha256(self) -> str:
        """Digest of the config of the run that saved it."""
        return self.manifest.config_sha256

    @property
    def classes(self) -> tuple[str, ...]:
        """Ordered WordNet ids of the head's rows."""
        return self.manifest.classes

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Full shape of every parameter by name."""
        return self.manifest.shapes

    @property
    def state(self) -> Mapping[str, Any]:
        """Counters of the engine and the trainer."""
        return self.manifest.state

    @property
    def has_average(self) -> bool:
        """Whether the run kept an average of its weights, kind ``ema``."""
        return any(kind == AVERAGE for kind, _ in self._index)

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Return elements ``start`` to ``start + count`` of a flattened parameter: fp32 [count].

        Only these are read from the disk, from as many files as hold them.

        Args:
            kind: ``master``, ``exp_avg``, ``exp_avg_sq`` or, where there is one, ``ema``.
            name: the parameter.
            start: first element.
            count: number of elements.

        Raises:
            CheckpointError: there is no such parameter or range, or a file cannot be read.
        """
        shape = self.shapes.get(name)
        if shape is None or (kind, name) not in self._index or start < 0 or count < 0:
            raise CheckpointError(f"{self.directory}: {kind} of {name}: not in this checkpoint")
        if start + count > math.prod(shape):
            raise CheckpointError(
                f"{self.directory}: {kind} of {name}: expected {math.prod(shape)} elements, "
                f"asked for {start} to {start + count}; is the model another one?"
            )
        wanted = torch.empty(count, dtype=torch.float32)
        for first, length, file in self._index[kind, name]:
            low, high = max(start, first), min(start + count, first + length)
            if low < high:
                part = self._slice(file, f"{kind}|{name}|{first}", low - first, high - first)
                wanted[low - start : high - start] = part
        return wanted

    def full(self, kind: str, name: str) -> Tensor:
        """Return a whole parameter in its shape, fp32. Raises as `read` does."""
        shape = self.shapes.get(name, ())
        return self.read(kind, name, 0, math.prod(shape)).view(shape)

    def close(self) -> None:
        """Let go of the files, which stay mapped otherwise: even deleted ones hold their space.

        Reading opens them again.
        """
        self._open.clear()

    def _slice(self, file: str, key: str, low: int, high: int) -> Tensor:
        path = self.directory / file
        try:
            if file not in self._open:
                self._open[file] = safe_open(path, framework="pt")
            return self._open[file].get_slice(key)[low:high]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {key}: cannot be read ({error})") from None


def verify(directory: Path) -> CheckpointReader:
    """Open a checkpoint after checking the digest of every file.

    Raises:
        CheckpointError: it is not exactly what was written; says which file and why.
    """
    reader = CheckpointReader(directory)
    damage = first_damage(directory, reader.manifest)
    if damage:
        raise CheckpointError(damage)
    return reader


def newest_valid(
    directory: Path, newest_step: int | None = None
) -> tuple[CheckpointReader | None, list[str]]:
    """Return the newest sound checkpoint in a directory, and why each newer one was refused.

    Order is by step, never by time stamps. No reader and no refusals means that nothing was saved;
    no reader with refusals means that everything saved is unsound, which the caller must not
    mistake for a fresh start.

    Args:
        directory: holds the checkpoints; need not exist.
        newest_step: later ones are passed over; None looks at all.

    Raises:
        CheckpointError: the directory cannot be listed.
    """
    refusals: list[str] = []
    for path in sorted(_candidates(directory), key=lambda path: step_of(path.name) or 0)[::-1]:
        if newest_step is not None and (step_of(path.name) or 0) > newest_step:
            continue
        try:
            if path.is_symlink():
                raise CheckpointError(f"{path}: a symbolic link, expected a directory")
            return verify(path), refusals
        except CheckpointError as error:
            refusals.append(str(error))
    return None, refusals


def _candidates(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if step_of(path.name) is not None]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be listed ({error.strerror})") from None


def newest_valid_for_all(
    directory: Path, *, rank: int, newest_step: int | None = None
) -> tuple[CheckpointReader | None, list[str]]:
    """Let rank zero choose as `newest_valid` does; every rank opens its choice. Every rank.

    Files are digested once, by rank zero.

    Args:
        directory: holds the checkpoints, the same for every rank.
        rank: this process's.
        newest_step: later ones are passed over; None looks at all.

    Raises:
        CheckpointError: on every rank, if rank zero cannot list the directory; on this rank, if it
            does not see the checkpoint that rank zero chose.
    """
    choice: dict[str, Any] = {"name": None, "refusals": [], "error": ""}
    if rank == 0:
        try:
            reader, choice["refusals"] = newest_valid(directory, newest_step)
            choice["name"] = None if reader is None else reader.directory.name
        except CheckpointError as error:
            choice["error"] = str(error)
    choice = json.loads(dist.broadcast_text(json.dumps(choice)))
    if choice["error"]:
        raise CheckpointError(choice["error"])
    reader = None if choice["name"] is None else CheckpointReader(directory / choice["name"])
    return reader, choice["refusals"]
