"""Writes one checkpoint: staged by all ranks, synced, digested, committed by one rename, pruned.

A crash at any instant leaves the older checkpoints as they were, and at most something in the
working directory of the attempt, which the next attempt removes.
"""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pretrain.checkpoint.agreement import Agreement, left_untouched
from pretrain.checkpoint.layout import (
    MANIFEST_NAME,
    CheckpointManifest,
    SavedFile,
    check_coverage,
    directory_name,
    file_name,
    read_fragments,
    read_manifest,
    step_of,
)
from pretrain.checkpoint.ownership import check_owner
from pretrain.checkpoint.retention import steps_kept
from pretrain.checkpoint.snapshot import Snapshot, write_synced
from pretrain.checkpoint.soundness import first_damage
from pretrain.errors import CheckpointError, StorageError
from pretrain.files import sync
from pretrain.world import World


@dataclass(frozen=True)
class Keep:
    """How many checkpoints are kept; see `steps_kept`."""

    last: int
    best: int = 0
    every_steps: int | None = None


@dataclass(frozen=True)
class Commit:
    """One save, ready to be carried out on every rank.

    Attributes:
        directory: of the checkpoints.
        world: the place of this rank.
        area: name of the working directory of the attempt that owns ``directory``.
        manifest: what the checkpoint will say about itself, but for its files.
        snapshot: this rank's part.
        keep: what is left of the others afterwards.
        before_commit: rank zero calls it before the checkpoint exists; what it implies is synced.
    """

    directory: Path
    world: World
    area: str
    manifest: CheckpointManifest
    snapshot: Snapshot
    keep: Keep
    before_commit: Callable[[], None]
    final: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "final", self.directory / directory_name(self.manifest.step))

    def run(self, agreement: Agreement) -> None:
        """Carry it out. Every rank; returns when it is on the disk.

        Raises:
            CheckpointError: it could not be written, on every rank alike and whichever rank had
                the problem; older checkpoints are untouched.
        """
        # The manifest names every fragment once more.
        told = agreement.of_all(lambda: [self.snapshot.bytes, 2 * len(self.snapshot.header)])
        sizes = [size for size, _ in told]
        if agreement.on_rank_zero(lambda: self._prepare(sum(map(sum, told)))) == "kept":
            return
        path = self._stage / file_name(self.world.rank)
        try:
            digests = agreement.of_all(lambda: self.snapshot.write(path))
            agreement.on_rank_zero(lambda: self._commit(sizes, digests))
        except CheckpointError:
            if self.world.rank == 0:
                shutil.rmtree(self._stage, ignore_errors=True)
            raise

    @property
    def _area(self) -> Path:
        return self.directory / self.area

    @property
    def _stage(self) -> Path:
        return self._area / self.final.name

    def _prepare(self, size_bytes: int) -> str:
        """Rank zero: make room and the stage; "kept" if the same is there already."""
        check_owner(self.directory, self.area)
        for leftover in self._area.glob("step_*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if self.final.is_dir():
            with contextlib.suppress(CheckpointError):
                there = read_manifest(self.final)
                same = there.config_sha256 == self.manifest.config_sha256
                if same and not first_damage(self.final, there):
                    return "kept"
        self._check_space(size_bytes)
        self._stage.mkdir()
        return "staged"

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise StorageError(
                f"{self.directory}: a checkpoint needs {_mib(needed)} more, {_mib(free)} are free; "
                "make room there, or keep fewer (checkpoint.keep_last); "
                f"{left_untouched(self.directory)}"
            )

    def _commit(self, sizes: list[int], digests: list[str]) -> None:
        """Rank zero: write the manifest, then make the directory exist under its name."""
        files = {}
        for rank, (size, digest) in enumerate(zip(sizes, digests, strict=True)):
            path = self._stage / file_name(rank)
            if not path.is_file() or path.stat().st_size != size:
                check_owner(self.directory, self.area)
                raise StorageError(
                    f"{path}: written by another rank but not visible on rank zero; "
                    "expected a file system that all nodes share"
                )
            files[path.name] = SavedFile(size, digest, read_fragments(path))
        manifest = replace(self.manifest, files=files)
        check_coverage(manifest, self.final)
        write_synced(self._stage / MANIFEST_NAME, [manifest.to_text().encode()])
        sync(self._stage)
        self.before_commit()
        if self.final.exists():  # unsound, or of another config: `_prepare` keeps any other
            discard(self.final, self._area)
        self._stage.rename(self.final)
        sync(self.directory)
        self._prune()

    def _prune(self) -> None:
        """Delete the checkpoints up to this step that are not to be kept, and unsound older ones.

        Later ones are of a future that was given up because they were refused; they are replaced
        when training comes by again. What cannot be deleted is left for the next save.
        """
        steps = {step_of(path.name): path for path in self.directory.iterdir()}
        paths = {s: path for s, path in steps.items() if s is not None and s <= self.manifest.step}
        sound = {}
        for step, path in paths.items():
            with contextlib.suppress(CheckpointError):
                sound[step] = read_manifest(path).accuracy_fraction
        kept = steps_kept(
            sound,
            keep_last=self.keep.last,
            keep_best=self.keep.best,
            keep_every_steps=self.keep.every_steps,
        )
        last = sorted(sound)[-self.keep.last :]
        for step, path in paths.items():
            # An unsound one is left while fewer than `keep.last` sound ones are newer.
            passed = step in sound or (len(last) == self.keep.last and step < last[0])
            if passed and step not in kept:
                with contextlib.suppress(OSError):
                    discard(path, self._area)


def discard(checkpoint: Path, area: Path) -> None:
    """Delete a checkpoint so that no half of it ever bears a checkpoint's name. Rank zero.

    Args:
        checkpoint: to delete.
        area: working directory of the attempt that owns it.

    Raises:
        OSError: it is still there.
    """
    doomed = area / f"{checkpoint.name}.old"
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"
