"""The verb ``resume``: a run that ended goes on, with the config it has."""

import os
from collections.abc import Sequence

from launch.request import Request
from launch.slurm import launch
from pretrain.config.load import read_run
from pretrain.config.schema import RunConfig
from pretrain.errors import LaunchError
from pretrain.plan.tuned import fields_in
from pretrain.run_directory import MAY_CHANGE, RunDirectory, differing_fields


def resume_run(
    run: RunDirectory, overrides: Sequence[str], *, command: Sequence[str], follow_on: bool | None
) -> int:
    """Launch a run again just as it was launched: checked, planned, its code renewed, submitted.

    Args:
        run: its directory.
        overrides: ``section.field=value`` items, of fields that do not decide what is learnt.
        command: what was typed, for the record.
        follow_on: watch until the end; None does so for runs on this machine.

    Returns:
        As `launch.slurm.launch` does.

    Raises:
        PretrainError: a field may not change, or the run cannot be launched.
    """
    request = Request([config_to_resume(run, overrides)])
    return launch(request, command=command, follow_on=follow_on)


def config_to_resume(run: RunDirectory, overrides: Sequence[str]) -> RunConfig:
    """The config of a run with some fields changed. Writes nothing.

    Raises:
        LaunchError: a field may not change, or the directory was renamed or is another user's.
        ConfigError: an override does not fit, or config.yaml is of another version.
    """
    old = run.read_config()
    owner = run.path.stat().st_uid
    if owner != os.getuid():
        raise LaunchError(f"{run.path}: belongs to user id {owner}, not to you")
    if any(item.partition("=")[0] == "tuned" for item in overrides):
        raise LaunchError(
            "tuned: a run goes on with the settings it has; give the fields themselves, such as "
            "batch.micro_size_max=64"
        )
    if fields_in(overrides):
        overrides = [*overrides, "tuned=none"]  # what it has now was not measured
    # The directory may have been moved as a whole; where it is now is meant.
    new = read_run(run.config_path, [*overrides, f"runs_dir={run.path.parent}"])
    if any(item.partition("=")[0] == "runs_dir" for item in overrides):
        raise LaunchError("runs_dir: a run is resumed where it is; move its directory instead")
    problems = [
        f"{field}: decides what is learnt: the run has {before!r}, got {after!r}; start another "
        "run for it (python launch/slurm.py --config … --name …)"
        for field, before, after in differing_fields(old, new)
    ]
    if problems:
        raise LaunchError("\n".join([*problems, f"may change: {', '.join(MAY_CHANGE[2:])}"]))
    if new.name != run.path.name:
        raise LaunchError(
            f"{run.path}: holds the run {new.name}; rename the directory to that to resume it"
        )
    return new
