"""Writes checkpoints: staged by all ranks, synced, digested, committed by one rename, pruned.

A crash at any instant leaves the older checkpoints as they were, and at most a ``.tmp`` directory
that the next save removes. An error of the file system on any rank is known to all of them before
anything is committed.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from pretrain import dist
from pretrain.checkpoint.layout import (
    MANIFEST_NAME,
    TEMPORARY_SUFFIX,
    CheckpointManifest,
    SavedFile,
    check_coverage,
    directory_name,
    file_name,
    read_manifest,
    step_of,
)
from pretrain.checkpoint.resume import first_damage
from pretrain.errors import CheckpointError
from pretrain.files import sync
from pretrain.world import World

_CHUNK_BYTES = 16 * 2**20


class CheckpointStore:
    """A directory of checkpoints, shared by all ranks. After `pretrain.dist.initialize`.

    Args:
        directory: holds one directory per checkpoint, on a file system that every rank sees;
            created by the first save.
        world: the place of this rank.
        keep_last: newest checkpoints kept, at least 1.
    """

    def __init__(self, directory: Path, *, world: World, keep_last: int) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last: expected at least 1, got {keep_last}")
        self._directory = directory
        self._world = world
        self._keep_last = keep_last

    def save(
        self,
        step: int,
        fragments: Mapping[str, Tensor],
        *,
        shapes: Mapping[str, tuple[int, ...]],
        state: Mapping[str, Any],
        samples_consumed: int,
        config_sha256: str,
        classes: Sequence[str],
    ) -> Path:
        """Save the state after ``step`` optimizer steps. Every rank; returns when it is on disk.

        A sound checkpoint of the same step and config is kept as it is. Afterwards rank zero
        deletes all but the newest ``keep_last`` up to this step.

        Args:
            step: optimizer steps taken, skipped ones included.
            fragments: this rank's part, flat fp32 CPU tensors by ``kind|parameter name|start``.
            shapes: full shape of every parameter by name.
            state: counters to restore, JSON values; rank zero's are saved.
            samples_consumed: samples trained on so far.
            config_sha256: digest of the run's config.
            classes: ordered WordNet ids of the head's rows.

        Returns:
            The checkpoint's directory.

        Raises:
            CheckpointError: it could not be written, on every rank alike and whichever rank had
                the problem; older checkpoints are untouched.
        """
        final = self._directory / directory_name(step)
        stage = final.with_name(final.name + TEMPORARY_SUFFIX)
        if self._on_rank_zero(lambda: self._prepare(final, stage, config_sha256)) == "kept":
            return final
        try:
            manifest = CheckpointManifest(
                step=step,
                samples_consumed=samples_consumed,
                world_size=self._world.size,
                config_sha256=config_sha256,
                classes=tuple(classes),
                shapes={name: tuple(shape) for name, shape in shapes.items()},
                state=dict(state),
                files=self._write_all(stage, fragments),
            )
            self._on_rank_zero(lambda: self._commit(manifest, stage, final))
        except CheckpointError:
            if self._world.rank == 0:
                shutil.rmtree(stage, ignore_errors=True)
            raise
        return final

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, sound or not. Every rank.

        Raises:
            CheckpointError: one could not be deleted, on every rank alike.
        """

        def delete() -> str:
            for path in self._directory.iterdir():
                if (step_of(path.name) or 0) > step:
                    self._delete(path)
            sync(self._directory)
            return ""

        self._on_rank_zero(delete)

    def _write_all(self, stage: Path, fragments: Mapping[str, Tensor]) -> dict[str, SavedFile]:
        """Write this rank's file; learn what every rank wrote."""
        path = stage / file_name(self._world.rank)
        written = self._agree(lambda: asdict(_write_fragments(path, fragments)))
        return {file_name(rank): SavedFile(**file) for rank, file in enumerate(written)}

    def _on_rank_zero(self, work: Callable[[], str]) -> str:
        """Run work on rank zero alone; every rank gets its answer, or its error."""
        return self._agree(work if self._world.rank == 0 else lambda: "")[0]

    def _agree(self, work: Callable[[], Any]) -> list[Any]:
        """Run work here, then tell everybody; an error of one is raised by all. Every rank."""
        value, problem = None, ""
        try:
            value = work()
        except CheckpointError as error:
            problem = str(error)
        except OSError as error:
            problem = self._explain(error)
        outcomes = dist.gather_objects({"value": value, "problem": problem})
        problems = [
            f"checkpoint, rank {rank}: {outcome['problem']}"
            for rank, outcome in enumerate(outcomes)
            if outcome["problem"]
        ]
        if problems:
            raise CheckpointError("\n".join(problems))
        return [outcome["value"] for outcome in outcomes]

    def _explain(self, error: OSError) -> str:
        message = f"{error.filename or self._directory}: cannot be written ({error.strerror})"
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self._directory).free
            message += f"; {free / 2**20:.0f} MiB are free there"
        return message + "; older checkpoints are untouched"

    def _prepare(self, final: Path, stage: Path, config_sha256: str) -> str:
        """Rank zero: clear what dead saves left, make the stage; "kept" if there is no need."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for leftover in self._directory.glob(f"step_*{TEMPORARY_SUFFIX}"):
            shutil.rmtree(leftover, ignore_errors=True)
        if final.is_dir():
            with contextlib.suppress(CheckpointError):
                manifest = read_manifest(final)
                if manifest.config_sha256 == config_sha256 and not first_damage(final, manifest):
                    return "kept"
        stage.mkdir()
        return "staged"

    def _commit(self, manifest: CheckpointManifest, stage: Path, final: Path) -> str:
        """Rank zero: write the manifest, then make the directory exist under its name."""
        check_coverage(manifest, final)
        for name, file in manifest.files.items():
            path = stage / name
            if not path.is_file() or path.stat().st_size != file.bytes:
                raise CheckpointError(
                    f"{path}: written by another rank but not visible on rank zero; "
                    "expected a file system that all nodes share"
                )
        _write_synced(stage / MANIFEST_NAME, manifest.to_text().encode())
        sync(stage)
        if final.exists():  # unsound, or of another config: `_prepare` keeps any other
            self._delete(final)
        stage.rename(final)
        sync(self._directory)
        self._prune(manifest.step)
        return ""

    def _prune(self, newest_step: int) -> None:
        """Delete what is older than the newest ``keep_last`` sound checkpoints up to a step.

        Later ones are of a future that was given up because they were refused; they are replaced
        when training comes by again. What cannot be deleted is left for the next save.
        """
        paths = [path for path in self._directory.iterdir() if step_of(path.name) is not None]
        sound = 0
        for path in sorted(paths, key=lambda path: step_of(path.name) or 0, reverse=True):
            if (step_of(path.name) or 0) > newest_step:
                continue
            if sound >= self._keep_last:
                with contextlib.suppress(OSError):
                    self._delete(path)
            sound += _looks_sound(path)

    def _delete(self, path: Path) -> None:
        """Delete a checkpoint so that no half of it ever bears a checkpoint's name."""
        doomed = path.with_name(f"{path.name}.old{TEMPORARY_SUFFIX}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _looks_sound(path: Path) -> bool:
    try:
        read_manifest(path)
    except CheckpointError:
        return False
    return True


def _write_fragments(path: Path, fragments: Mapping[str, Tensor]) -> SavedFile:
    content = safetensors.torch.save(dict(fragments))
    _write_synced(path, content)
    return SavedFile(
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        fragments={key: tensor.numel() for key, tensor in fragments.items()},
    )


def _write_synced(path: Path, content: bytes) -> None:
    view = memoryview(content)
    try:
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(view), _CHUNK_BYTES):
                chunk = view[start : start + _CHUNK_BYTES]
                while chunk:
                    chunk = chunk[file.write(chunk) :]
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
