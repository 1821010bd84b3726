"""Sweeps: one config at several values of some fields, each a run of its own, in one job array."""

import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.script import JobSpec, spec_of
from launch.snapshot import copy_source
from launch.submit import Job, submit_array
from pretrain.config.load import load_run, rename
from pretrain.config.schema import RunConfig
from pretrain.errors import LaunchError
from pretrain.files import make_private, replace_text
from pretrain.lookup import SHARED_SUFFIX
from pretrain.run_directory import RunDirectory

MOST_POINTS = 1000
"""Slurm's default ``MaxArraySize`` is 1001."""
VALUE_CHARACTERS = 40
"""Longest value spelt out in a run's name."""
_OPENING, _CLOSING = "[{(", ")}]"


@dataclass(frozen=True)
class Axis:
    """A field and its values as typed, at least one."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """The points of a sweep.

    Attributes:
        name: that the names of its runs begin with.
        axes: the fields.
        configs: one for each point; the last axis runs fastest.
    """

    name: str
    axes: tuple[Axis, ...]
    configs: tuple[RunConfig, ...]


def read_axis(text: str) -> Axis:
    """Parse ``optim.lr=1e-3,2e-3``; commas within brackets or quotes belong to a value.

    Raises:
        LaunchError: it has another form, or an empty value.
    """
    key, separator, rest = text.partition("=")
    values = tuple(value.strip() for value in _split(rest))
    if not separator or not key or not all(values):
        raise LaunchError(f"--sweep {text}: expected section.field=value,value…, none of it empty")
    return Axis(key, values)


def load_sweep(
    name: str,
    texts: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    cluster: str | None = None,
    run_name: str | None = None,
) -> Sweep:
    """Load the config of every point: the product of the axes. Writes nothing.

    A point's name says its values as the config holds them, so that ``1e-3`` and ``0.001`` are one.

    Args:
        name: as `load_run` takes it.
        texts: what was given as ``--sweep``, at least one.
        overrides: for every point.
        cluster: as `load_run` takes it.
        run_name: what the names of the points begin with; null takes the config's name.

    Raises:
        LaunchError: an axis that is none, two for one field, two equal points, too many points, or
            points that would need jobs of different shapes.
        ConfigError: a point that is no sound config.
    """
    axes = tuple(read_axis(text) for text in texts)
    keys = [axis.key for axis in axes]
    given = {item.partition("=")[0] for item in overrides}
    for key in keys:
        if keys.count(key) > 1 or key in given:
            raise LaunchError(f"--sweep {key}: the field is given twice; give it once")
        if key in ("name", "runs_dir"):
            raise LaunchError(f"--sweep {key}: every point has a name of its own already")
    points = list(itertools.islice(_points(axes), MOST_POINTS + 1))
    if len(points) > MOST_POINTS:
        raise LaunchError(f"--sweep: more than {MOST_POINTS} points; give fewer values")
    loaded = [
        load_run(name, [*overrides, *point], cluster=cluster, run_name=run_name) for point in points
    ]
    base = loaded[0].name
    configs = tuple(rename(config, _point_name(base, config, keys)) for config in loaded)
    _check_apart(configs, points)
    if any(config.cluster != configs[0].cluster for config in configs):
        raise LaunchError(
            "--sweep: the points share one job array, so nothing of cluster may differ; "
            "launch them one by one"
        )
    return Sweep(base, axes, configs)


def sweep_spec(
    sweep: Sweep,
    elements: int,
    ranks_per_node: int,
    concurrent: int | None,
    after: Sequence[str] = (),
) -> JobSpec:
    """The job array of the next submission of a sweep. Writes nothing.

    Args:
        sweep: whose points are submitted.
        elements: how many of them.
        ranks_per_node: processes on each node.
        concurrent: most elements that run at a time; None for all.
        after: jobs that must succeed first.
    """
    parent = Path(sweep.configs[0].runs_dir) / f"{sweep.name}{SHARED_SUFFIX}"
    taken = [int(entry.name) for entry in parent.glob("*") if entry.name.isdigit()]
    run = RunDirectory(parent / f"{max(taken, default=0) + 1:03d}")
    spec = spec_of(run, sweep.configs[0], ranks_per_node, after)
    return replace(spec, name=sweep.name, elements=elements, concurrent=concurrent)


def submit_sweep(sweep: Sweep, runs: Sequence[RunDirectory], spec: JobSpec) -> list[Job]:
    """Submit runs of a sweep as one job array.

    What the array has in common lies in ``NAME.sweep/001``: submitit's folder, the source that the
    supervisors execute, and ``sweep.json``.

    Raises:
        LaunchError: Slurm refuses the job; the directory is gone again then.
    """
    common = RunDirectory(spec.directory.parent)
    make_private(common.path)
    try:
        copy_source(common)
        jobs = submit_array(runs, spec)
    except LaunchError:
        shutil.rmtree(common.path, ignore_errors=True)
        raise
    record = {
        "axes": {axis.key: list(axis.values) for axis in sweep.axes},
        "jobs": {run.path.name: job.job_id for run, job in zip(runs, jobs, strict=True)},
    }
    replace_text(common.path / "sweep.json", json.dumps(record, indent=1) + "\n")
    return jobs


def _points(axes: Iterable[Axis]) -> Iterable[tuple[str, ...]]:
    """The overrides of every point."""
    spelt = [[f"{axis.key}={value}" for value in axis.values] for axis in axes]
    return itertools.product(*spelt)


def _split(text: str) -> list[str]:
    """Split at commas that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _point_name(base: str, config: RunConfig, keys: Iterable[str]) -> str:
    values = config.model_dump(mode="json")
    return "--".join([base, *(f"{key}={_spell(key, values)}" for key in keys)])


def _spell(key: str, values: Any) -> str:
    """The value of a field in the letters of a name; what they cannot say is told by a digest."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    if isinstance(values, dict):
        raise LaunchError(f"--sweep {key}: expected a field, got a section; give its fields")
    text = values if isinstance(values, str) else json.dumps(values, separators=(",", ":"))
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", text)
    if plain == text and len(text) <= VALUE_CHARACTERS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{plain.strip('-')[-VALUE_CHARACTERS:].strip('-')}-{digest}".lstrip("-")


def _check_apart(configs: Sequence[RunConfig], points: Sequence[tuple[str, ...]]) -> None:
    seen: dict[str, tuple[str, ...]] = {}
    for config, point in zip(configs, points, strict=True):
        if config.name in seen:
            first, second = " ".join(seen[config.name]), " ".join(point)
            raise LaunchError(f"--sweep: {first} and {second} are the same point")
        seen[config.name] = point
