"""``python -m pretrain.metrics repair RUN``: what Weights & Biases lost is made from the record.

All of the run's own ``.wandb`` files are held against metrics.jsonl. Where they lack something one
complete offline run of the same id is built beside them, and only then do they move aside.
"""

import json
import os
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.schema import RunConfig
from pretrain.credentials import without_url_secrets
from pretrain.errors import LaunchError
from pretrain.files import read_json, replace_text
from pretrain.metrics.jsonl import plain, read_lines
from pretrain.metrics.mirror.files import WandbFile, local_files, read_file
from pretrain.metrics.mirror.mirror import SETTINGS_NAME, send_the_rest, settings_of
from pretrain.metrics.mirror.process import LOCK_NAME
from pretrain.metrics.mirror.sending import STEP, alert_text, values_of
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import lock_holder, try_lock

REBUILD_SECONDS = 1800.0
"""Longest that the record of a run may take to be written as wandb's."""
ASIDE = "superseded"
"""Where old files go, in the run's ``wandb/``."""


@dataclass
class Comparison:
    """A record and what wandb's files hold of it, counted in numbers: one name of one step.

    Attributes:
        files: name, numbers, how many of them were there before, how many differ from the record,
            and what is damaged, of each file.
        missing: numbers of the record that are in no file.
        missing_alerts: alerts that are in none.
        numbers: of the record.
    """

    files: list[tuple[str, int, int, int, str]]
    missing: int
    missing_alerts: int
    numbers: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, twice there or damaged."""
        faults = any(twice or damage for _, _, twice, _, damage in self.files)
        return not (faults or self.missing or self.missing_alerts)


def repair(run: RunDirectory) -> list[str]:
    """Rebuild what wandb has of a run if anything is missing there.

    Returns:
        What was found and done, in lines.

    Raises:
        LaunchError: the run is active, has no record, or cannot be rebuilt.
    """
    _refuse(run)
    lines = [line for line in read_lines(run.metrics_path) if isinstance(line.get("step"), int)]
    events = read_lines(run.events_path)
    files = [read_file(path) for path in local_files(run.wandb_dir)]
    found = compare(lines, events, files)
    said = table(found)
    if found.is_whole:
        return [*said, "nothing is missing; nothing was done"]
    built = _rebuild(run, files)
    again = compare(lines, events, [read_file(built)])
    if not again.is_whole:
        raise LaunchError(
            f"{built}: is not whole either ({again.missing:,} numbers missing); the old files were "
            "left where they are"
        )
    return [*said, *_put_in_place(run, built)]


def compare(
    lines: Iterable[Mapping[str, Any]],
    events: Iterable[Mapping[str, Any]],
    files: Sequence[WandbFile],
) -> Comparison:
    """Hold the files against the record."""
    record = {
        (line["step"], name): plain(value)
        for line in lines
        for name, value in values_of(line).items()
    }
    seen: set[tuple[int, str]] = set()
    counted = []
    for file in files:
        numbers = twice = different = 0
        for row in (row for row in file.rows if STEP in row):
            for name, value in values_of(row).items():
                key = row[STEP], name
                numbers += 1
                twice += key in seen
                different += key in record and record[key] != plain(value)
                seen.add(key)
        damage = "; ".join(file.damage)
        counted.append((file.path.parent.name, numbers, twice, different, damage))
    there = {text for file in files for text in file.alerts}
    asked = {alert_text(event) for event in events if event.get("event") == "alert"}
    return Comparison(counted, len(record.keys() - seen), len(asked - there), len(record))


def table(found: Comparison) -> list[str]:
    """A comparison for people, one line for each file and one for all."""
    width = max([len(name) for name, *_ in found.files] + [len("all files")])
    lines = [f"{'':{width}}  {'numbers':>9}  {'twice':>7}  {'different':>9}  damage"]
    for name, numbers, twice, different, damage in found.files:
        lines.append(
            f"{name:{width}}  {numbers:>9,}  {twice:>7,}  {different:>9,}  {damage or 'none'}"
        )
    there = found.numbers - found.missing
    lines.append(
        f"{'all files':{width}}  {there:,} of the record's {found.numbers:,} numbers; missing: "
        f"{found.missing:,} numbers, {found.missing_alerts:,} alerts"
    )
    if any(different for *_, different, _ in found.files):
        lines.append("different: of steps that were trained again, wandb has the first numbers")
    return lines


def _refuse(run: RunDirectory) -> None:
    """Make sure that nobody writes there, and that there is something to write.

    Raises:
        LaunchError: otherwise.
    """
    if lock_holder(run) is not None:
        raise LaunchError(f"{run.path}: is active; wait for its end, or stop it, then repair it")
    lock_path = run.wandb_dir / LOCK_NAME
    if lock_path.exists():
        descriptor = try_lock(lock_path)
        if descriptor is None:
            raise LaunchError(f"{run.wandb_dir}: is still being written; try again in a minute")
        os.close(descriptor)
    if not read_lines(run.metrics_path):
        raise LaunchError(f"{run.metrics_path}: expected the record of a run, found none")


def _rebuild(run: RunDirectory, files: Sequence[WandbFile]) -> Path:
    """Build one whole offline run beside the old ones; return its file."""
    directory = run.wandb_dir / "repair.tmp" / "wandb"
    _empty(directory)
    config = run.read_config()
    settings = read_json(run.wandb_dir / SETTINGS_NAME) or _settings(run, config, files)
    settings |= {"mode": "offline", "directory": str(directory), "finish_seconds": REBUILD_SECONDS}
    replace_text(directory / SETTINGS_NAME, json.dumps(settings, indent=1) + "\n")
    code = 0 if run.is_done() else 1
    problem = send_the_rest(directory, code, seconds=REBUILD_SECONDS)
    built = local_files(directory)
    if problem is not None or len(built) != 1:
        raise LaunchError(
            f"{directory}: wandb's run could not be rebuilt: {problem}; the old files were left "
            "where they are"
        )
    return built[0]


def _settings(run: RunDirectory, config: RunConfig, files: Sequence[WandbFile]) -> dict[str, Any]:
    """What `WandbMirror` would write, with the id and the facts that the files still tell."""
    known = {name: value for file in files for name, value in file.config.items()}
    facts = without_url_secrets({**known, **config.model_dump(mode="json")})
    settings = settings_of(
        run, config.wandb, name=config.name, images_per_step=config.batch.global_size, config=facts
    )
    ids = [file.run_id for file in files if file.run_id]
    return settings | ({"id": ids[0]} if ids else {})


def _empty(directory: Path) -> None:
    """Make a directory anew; an earlier repair may have been killed."""
    shutil.rmtree(directory.parent, ignore_errors=True)
    directory.mkdir(parents=True)


def _put_in_place(run: RunDirectory, built: Path) -> list[str]:
    """Move the old files aside and the new one to where they were."""
    aside = run.wandb_dir / ASIDE
    aside.mkdir(exist_ok=True)
    moved = 0
    for path in {path.parent for path in local_files(run.wandb_dir)}:
        path.rename(_free(aside / path.name))
        moved += 1
    new = run.wandb_dir / built.parent.name
    built.parent.rename(new)
    settings = run.wandb_dir / SETTINGS_NAME
    if not settings.exists():
        kept = read_json(built.parents[1] / SETTINGS_NAME) or {}
        replace_text(settings, json.dumps(kept | {"directory": str(run.wandb_dir)}) + "\n")
    shutil.rmtree(built.parents[2], ignore_errors=True)
    identity = built.stem.removeprefix("run-")
    sync = f"wandb sync {shlex.quote(str(new))}"
    return [
        f"rebuilt: {new}, the whole record under id {identity}; {moved} old parts are in {aside}",
        f"to Weights & Biases: {sync}",
        "if a part was synced before, delete that run there first, or sync under another id: "
        f"{sync} --id {identity}-repaired",
    ]


def _free(path: Path) -> Path:
    """A name that nothing has: repairs may follow each other within a second."""
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate
