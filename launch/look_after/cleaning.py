"""The verb ``clean``: what of a run can go, how much that is, and removing it."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.look_after.reading import attempt_numbers
from launch.look_after.standing import disk_bytes
from launch.look_after.tables import aligned, one_line, size
from launch.processes import locked
from launch.status import Queue, look
from launch.submit import read_job
from pretrain.checkpoint.layout import TEMPORARY_SUFFIX, read_manifest, step_of
from pretrain.checkpoint.ownership import areas
from pretrain.checkpoint.soundness import first_damage
from pretrain.errors import CheckpointError, LaunchError, PretrainError
from pretrain.lookup import name_for_commands, runs_below
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import run_lock


@dataclass(frozen=True)
class Item:
    """Something that can go.

    Attributes:
        path: of the file or directory.
        what: it is, in words.
        size_bytes: it takes on the disk.
    """

    path: Path
    what: str
    size_bytes: int


def clean_run(
    run: RunDirectory, *, keep_checkpoints: int | None, everything: bool, agreed: bool
) -> int:
    """Say what can go, ask, and remove it.

    Args:
        run: its directory.
        keep_checkpoints: as many of the newest sound ones stay; None leaves all.
        everything: the whole directory instead, export and checkpoints included.
        agreed: do not ask.

    Returns:
        0, or 1 where it was not agreed to.

    Raises:
        LaunchError: the run is active, is another user's, or is needed; or nobody can be asked.
    """
    _check_idle(run, everything=everything)
    with locked(run.submit_lock_path), run_lock(run, "clean") as held:
        if not held:
            raise LaunchError(f"{run.path.name}: has become active; stop it first")
        if keep_checkpoints is not None:
            print(f"{run.path.name}: reading the newest checkpoints to the last byte", flush=True)
        items, notes = _whole(run) if everything else find_items(run, keep_checkpoints)
        rows = [[item.what, size(item.size_bytes), str(item.path)] for item in items]
        for line in aligned(rows, [False, True, False]):
            print(one_line(line))
        for note in notes:
            print(one_line(note))
        total = size(sum(item.size_bytes for item in items))
        if not items:
            print(f"{run.path.name}: nothing to clean")
            return 0
        if not agreed and not _ask(f"{run.path.name}: remove {len(items)} of these, {total}?"):
            print("nothing was removed")
            return 1
        for item in items:
            remove(item.path)
    print(f"{run.path.name}: removed, {total}")
    return 0


def find_items(
    run: RunDirectory, keep_checkpoints: int | None = None
) -> tuple[list[Item], list[str]]:
    """What can go without loss to training, and what is left though it was asked for.

    Args:
        run: its directory; nobody works in it.
        keep_checkpoints: as many of the newest sound ones stay; None leaves all.
    """
    found = [*_old_logs(run), *_submitit_files(run), *_staged(run)]
    notes: list[str] = []
    if keep_checkpoints is not None:
        doomed, notes = _old_checkpoints(run, keep_checkpoints)
        found += [("checkpoint", path) for path in doomed]
    return [Item(path, what, disk_bytes(path)) for what, path in found], notes


def remove(path: Path) -> None:
    """Delete a file or a directory, so that no half of it bears its name.

    Raises:
        LaunchError: it is still there.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        doomed = path
        if not path.name.endswith(TEMPORARY_SUFFIX):
            doomed = path.rename(path.with_name(f"{path.name}{TEMPORARY_SUFFIX}"))
        shutil.rmtree(doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LaunchError(f"{path}: cannot be removed ({error.strerror})") from None


def _check_idle(run: RunDirectory, *, everything: bool) -> None:
    name = run.path.name
    if run.path.is_symlink():
        raise LaunchError(f"{run.path}: is a link; give the path of the directory itself")
    owner = run.path.stat().st_uid
    if owner != os.getuid():
        raise LaunchError(f"{run.path}: belongs to user id {owner}, not to you")
    status = look(run, Queue(seconds=0))
    if status.is_active:
        raise LaunchError(
            f"{name}: is active ({status.detail}); stop it first: python launch/runs.py stop "
            f"{name_for_commands(run)}"
        )
    for other in runs_below(run.path.parent)[0] if everything else []:
        if _starts_from(other, name) and look(other, Queue(seconds=0)).is_active:
            raise LaunchError(f"{name}: {other.path.name}, which is active, starts from it")


def _starts_from(other: RunDirectory, name: str) -> bool:
    try:
        return other.read_config().init_from == name
    except (PretrainError, OSError):  # damaged, or another user's
        return False


def _whole(run: RunDirectory) -> tuple[list[Item], list[str]]:
    if not run.exists or not (run.plan_path.exists() or run.job_path.exists()):
        raise LaunchError(f"{run.path}: not surely a run (no plan.json); remove it by hand")
    return [Item(run.path, "everything", disk_bytes(run.path))], []


def _old_logs(run: RunDirectory) -> Iterator[tuple[str, Path]]:
    for number in attempt_numbers(run)[:-1]:
        yield f"logs of attempt {number}", run.attempt_dir(number)


def _submitit_files(run: RunDirectory) -> Iterator[tuple[str, Path]]:
    """All but the last job's log: nothing reads a job's pickles and script once it has ended."""
    job = read_job(run)
    if not run.submitit_dir.is_dir():
        return
    for path in sorted(run.submitit_dir.iterdir()):
        if job is None or str(path) != job.log:
            yield "submission file", path


def _staged(run: RunDirectory) -> Iterator[tuple[str, Path]]:
    """What a crash left of files and copies that were being written."""
    for path in sorted(run.path.glob(f"*{TEMPORARY_SUFFIX}")):
        yield "staged", path
    if not run.checkpoints_dir.is_dir():
        return
    for path in sorted(run.checkpoints_dir.glob(f"*{TEMPORARY_SUFFIX}")):
        yield "staged checkpoint", path
    for area in areas(run.checkpoints_dir):
        for path in sorted(area.glob("step_*")):
            yield "staged checkpoint", path


def _old_checkpoints(run: RunDirectory, keep: int) -> tuple[list[Path], list[str]]:
    """Checkpoints older than the ``keep`` newest that are sound to the last byte."""
    if not run.checkpoints_dir.is_dir():
        return [], []
    checkpoints = [path for path in run.checkpoints_dir.iterdir() if step_of(path.name) is not None]
    newest_first = sorted(checkpoints, key=lambda path: step_of(path.name) or 0, reverse=True)
    notes: list[str] = []
    kept = 0
    for index, path in enumerate(newest_first):
        try:
            damage = first_damage(path, read_manifest(path))
        except CheckpointError as error:
            damage = str(error)
        kept += damage is None
        notes += [f"left: {damage}"] if damage else []
        if kept == keep:
            return newest_first[index + 1 :], notes
    return [], notes


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        raise LaunchError("--yes: not given, and there is no terminal to ask at; nothing removed")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
