"""Which measured settings a run takes up, and which it refuses and why. No torch.

A run that has begun goes on as it began: its own config.yaml holds the settings, and a file that
was written since, or is gone, changes nothing.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from pretrain.config.load import vary
from pretrain.config.schema import RunConfig
from pretrain.errors import ConfigError, PretrainError
from pretrain.plan.derive import split_batch
from pretrain.plan.resources import device_name_here, gpus_here
from pretrain.plan.tuned import (
    FOLDER,
    Place,
    Settled,
    Tuned,
    TunedRate,
    fields_in,
    place_of,
    read_tuned,
    torch_version,
    typed_as,
    value_of,
    values_of,
    work_of,
)
from pretrain.run_directory import RunDirectory

AUTO, NONE = "auto", "none"


def take_up(config: RunConfig, name: str, overrides: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """Give a run the measured settings that it asks for, all of them or none.

    Args:
        config: as it was loaded.
        name: of its config, or the path of that.
        overrides: what was typed: a value of a tuned field that is not the measured one wins, and
            then nothing is taken, since nobody measured the mixture.

    Returns:
        The config, whose ``tuned`` is the path of the file or ``none``; and what is to be said of
        files that were not taken.

    Raises:
        ConfigError: a file that was asked for by its path does not fit, with the reason.
    """
    if config.tuned == NONE:
        return config, []
    typed = fields_in(overrides)
    if config.tuned != AUTO:
        path = Path(config.tuned)
        tuned = read_tuned(path)
        why = refusal(tuned, config, typed, by_path=True)
        if why is not None:
            raise ConfigError(f"tuned: {path}: {why}; tune again, or give tuned=none")
        return _with(config, tuned.settings, config.tuned), []
    begun = _begun(config)
    if begun is not None and begun.tuned not in (AUTO, NONE):
        return _as_begun(config, begun, typed)
    fitting, said = _looked_through(config, name, typed)
    if len(fitting) > 1:
        said = [f"tuned: {' and '.join(fitting)} both fit; tuned=PATH takes one of them"]
    elif fitting and begun is not None:
        said = [
            f"tuned: {next(iter(fitting))} is not taken up: run {config.name} goes on as it began; "
            "tuned=PATH takes it"
        ]
    elif fitting:
        path, settings = next(iter(fitting.items()))
        return _with(config, settings, path), []
    return _with(config, {}, NONE), said


def refusal(
    tuned: Tuned, config: RunConfig, typed: Collection[str], *, by_path: bool
) -> str | None:
    """Say why settings are not for a run; None where they are.

    Args:
        tuned: what was measured.
        config: the run, without them.
        typed: fields that a person settled.
        by_path: the file was asked for: what cannot be compared from here is believed.
    """
    clash = _clash(config, tuned.settings, typed)
    if clash is not None:
        return clash
    work = work_of(config)
    for field in sorted(work.keys() | tuned.work.keys()):
        made_for, has = tuned.work.get(field), work.get(field)
        if made_for != has:
            return f"made for {field} {json.dumps(made_for)}, and this run has {json.dumps(has)}"
    for field, before in tuned.instead_of.items():
        now = value_of(config, field)
        if field not in typed and now != before and not by_path:
            return (
                f"made when the config said {typed_as({field: before})[0]}, and it now says "
                f"{typed_as({field: now})[0]}"
            )
    if tuned.torch != torch_version():
        return f"made with torch {tuned.torch}, and this is {torch_version()}"
    return _refusal_of_device(tuned, config, by_path=by_path)


def tuned_rate(config: RunConfig, world_size: int) -> TunedRate | None:
    """The rate of a rank as it was measured with just the settings that a run has, or None.

    Args:
        config: of the run.
        world_size: its ranks; the micro-batch must come out as it was measured.
    """
    tuned = _read(config)
    if tuned is None:
        return None
    if split_batch(config, world_size)[0] != config.batch.micro_size_max:
        return None
    return TunedRate(tuned.images_per_second, tuned.device, config.tuned)


def tuned_on(config: RunConfig) -> str | None:
    """The device that a run's settings were measured on; None where they were not, or nobody knows.

    A job may get other devices than those it was launched for.
    """
    tuned = _read(config)
    return None if tuned is None else tuned.device


def _read(config: RunConfig) -> Tuned | None:
    """The file whose settings a run has, for as long as it says what it said."""
    if config.tuned in (AUTO, NONE):
        return None
    try:
        tuned = read_tuned(Path(config.tuned))
    except ConfigError:
        return None
    settings = values_of(config)
    changed = any(settings[field] != value for field, value in tuned.settings.items())
    return None if changed or tuned.work != work_of(config) else tuned


def _looked_through(
    config: RunConfig, name: str, typed: Collection[str]
) -> tuple[dict[str, Settled], list[str]]:
    """Return the settings of the files that fit by path, and why the others do not."""
    stem = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    fitting: dict[str, Settled] = {}
    said: list[str] = []
    for path in _files_of(config, stem):
        try:
            tuned = read_tuned(path)
        except ConfigError as error:
            said.append(str(error))
            continue
        if tuned.config != stem:
            continue
        why = refusal(tuned, config, typed, by_path=False)
        if why is None:
            fitting[str(path)] = tuned.settings
        else:
            said.append(f"tuned: {path} is not taken up: {why}")
    return fitting, [] if fitting else said


def _files_of(config: RunConfig, stem: str) -> list[Path]:
    try:
        return sorted(Path(config.runs_dir, FOLDER).glob(f"{stem}-*.yaml"))
    except OSError:
        return []  # whoever makes the run's directory says why


def _begun(config: RunConfig) -> RunConfig | None:
    """The config that the run of that name has, if it has begun."""
    run = RunDirectory(Path(config.runs_dir) / config.name)
    try:
        return run.read_config() if run.exists else None
    except (PretrainError, OSError):
        return None  # whoever is to run there says so


def _as_begun(
    config: RunConfig, begun: RunConfig, typed: Collection[str]
) -> tuple[RunConfig, list[str]]:
    settings = values_of(begun)
    why = _clash(config, settings, typed)
    if why is None and work_of(begun) != work_of(config):
        why = "they were measured for other work"
    if why is None:
        return _with(config, settings, begun.tuned), []
    said = f"tuned: the settings that run {begun.name} began with are not taken up: {why}"
    return _with(config, {}, NONE), [said]


def _clash(config: RunConfig, settings: Settled, typed: Iterable[str]) -> str | None:
    for field in sorted(typed):
        given = value_of(config, field)
        if field in settings and settings[field] != given:
            given, taken = typed_as({field: given})[0], typed_as({field: settings[field]})[0]
            return f"{given} was given, and they are for {taken}"
    return None


def _refusal_of_device(tuned: Tuned, config: RunConfig, *, by_path: bool) -> str | None:
    place = place_of(config)
    if place.executor == "slurm":
        if by_path or tuned.place == place:
            return None
        return (
            f"made on {tuned.device} for jobs {_said(tuned.place)}, and this one goes "
            f"{_said(place)}; tune with the same --cluster, or give tuned=PATH if that has such"
        )
    kind = config.cluster.device
    if kind == "auto":
        kind = "cuda" if gpus_here() else "cpu"
    here = device_name_here(kind)
    if here is None and not by_path:
        return f"made on {tuned.device}, and what is here cannot be told; tuned=PATH takes it"
    if here is not None and here != tuned.device:
        return f"made on {tuned.device}, and this machine has {here}"
    return None


def _said(place: Place) -> str:
    if place.executor != "slurm":
        return "outside of Slurm"
    constraint = f", constraint {place.constraint}" if place.constraint else ""
    return f"to partition {place.partition or '(default)'}{constraint}"


def _with(config: RunConfig, settings: Settled, path: str) -> RunConfig:
    overrides = [*typed_as(settings), f"tuned={json.dumps(path)}"]
    return vary(config, overrides, f"tuned: {path}")
