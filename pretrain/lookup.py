"""Finding runs: by name below a runs directory, or by the path of one."""

import difflib
import os
import shlex
from pathlib import Path

from pretrain.errors import LaunchError
from pretrain.plan.tuned import FOLDER
from pretrain.run_directory import RunDirectory

RUNS_DIR = "runs"
"""Where runs are unless something else is said."""
NAMES_SHOWN = 10
SHARED_SUFFIX = ".sweep"
"""Ends the name of the directory that the runs of a sweep share."""
_MARKS = ("config.yaml", "plan.json", "job.json", "attempts.jsonl", "submit.lock", "checkpoints")
"""Any of them makes a directory a run, whole or not."""


def find_run(name: str, runs_dir: Path) -> RunDirectory:
    """Return the run of that name, or the one at that path.

    Raises:
        LaunchError: there is none; names the nearest ones.
    """
    # A name first: a directory of the same name beside the runs is not meant.
    for path in (runs_dir / name, Path(name).expanduser()):
        if name.strip("/") and looks_like_run(path):
            return RunDirectory(os.path.normpath(path.absolute()))
    wanted = Path(name).name
    folder = Path(name).expanduser().parent if "/" in name.rstrip("/") else runs_dir
    names = [run.path.name for run in runs_below(folder)[0]] if folder.is_dir() else []
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(repr(item) for item in near)}?"
    elif names:
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        hint = f"there are {', '.join(names[:NAMES_SHOWN])}{more}"
    else:
        hint = "there are none; give --runs-dir PATH or the path of a run"
    raise LaunchError(f"RUN {name}: no such run in {folder.absolute()}; {hint}")


def runs_below(runs_dir: Path) -> tuple[list[RunDirectory], list[str]]:
    """Return the runs in a directory by name, and the names of directories that are none.

    Raises:
        LaunchError: there is no such directory, or it cannot be read.
    """
    try:
        entries = sorted(os.scandir(runs_dir), key=lambda entry: entry.name)
    except OSError as error:
        raise LaunchError(
            f"--runs-dir: {runs_dir.absolute()}: {error.strerror}; give --runs-dir PATH"
        ) from None
    runs: list[RunDirectory] = []
    others: list[str] = []
    for entry in entries:
        if not entry.is_dir() and not entry.is_symlink():
            continue
        if looks_like_run(Path(entry.path)):
            runs.append(RunDirectory(entry.path))
        elif entry.is_dir() and not entry.name.endswith(SHARED_SUFFIX) and entry.name != FOLDER:
            others.append(entry.name)
    return runs, others


def name_for_commands(run: RunDirectory) -> str:
    """What to type for a run, from where this process stands."""
    usual = run.path.parent == Path(RUNS_DIR).absolute()
    return shlex.quote(run.path.name if usual else str(run.path))


def looks_like_run(path: Path) -> bool:
    """Whether something of a run is there, or nobody may look."""
    try:
        return any((path / mark).exists() for mark in _MARKS)
    except PermissionError:
        return True
    except OSError:
        return False
