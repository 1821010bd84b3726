"""The file of settings that ``python -m pretrain.tune`` measured. No torch."""

import json
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from pretrain.config.schema import RunConfig
from pretrain.config.section import PositiveFloat, PositiveInt, Section
from pretrain.errors import ConfigError
from pretrain.files import make_private, replace_text
from pretrain.run_directory import flatten

MICRO_BATCH = "batch.micro_size_max"
CHECKPOINTING = "engine.activation_checkpointing"
CHOICES: dict[str, tuple[Any, ...]] = {
    "engine.attention": ("auto", "plain"),
    "engine.layer_norm": ("auto", "torch"),
    "engine.cross_entropy": ("auto", "plain"),
    "engine.compile": (False, True),
}
"""Fields that are tuned besides, with the values that are tried, in that order. What is automatic
takes the kernels that work, so that doing without is all there is to try."""
OF_GPUS = ("engine.attention", "engine.layer_norm", "engine.cross_entropy")
"""Those of them in which a CPU has no choice."""
FIELDS = (MICRO_BATCH, CHECKPOINTING, *CHOICES)
"""All fields that are tuned: how a step is computed, never what is learnt."""
WORK = (
    "model",
    "masking",
    "augment",
    "optim.kind",
    "optim.implementation",
    "ema",
    "engine.zero_stage",
    "engine.offload",
    "engine.precision",
    "engine.reduce_dtype",
    "engine.threads_per_rank",
    "cluster.ranks_per_node",
)
"""Sections and fields that decide how fast a rank is, besides those that are tuned."""
Settled = dict[str, Any]
"""Values of `FIELDS`, as they stand in a config's JSON."""
FOLDER = "tuned"
"""In ``runs_dir``: what was measured belongs to the machines that runs are on, not to configs."""


class Place(Section):
    """Where a device is had: the executor, and for Slurm the partition and constraint."""

    executor: str
    partition: str | None
    constraint: str | None


class Tuned(Section):
    """What was measured, for whom, on what."""

    config: str
    """Name of the config it was made for."""
    settings: Settled
    """The fastest value of each of `FIELDS`, no more and no fewer."""
    instead_of: Settled
    """What the config said of them."""
    work: dict[str, Any]
    """What decides the rate, by dotted name."""
    device: str
    """Name of the device."""
    torch: str
    """Version of torch."""
    place: Place
    """Where the device was had."""
    accumulation: PositiveInt
    """Micro-batches of a step as it was measured."""
    images_per_second: PositiveFloat
    """Of one rank alone, without loading and communication."""
    images_per_second_before: PositiveFloat | None
    """The same with what the config said; null where that did not work."""
    peak_gib: PositiveFloat
    """Most memory that its tensors took, GiB."""
    device_gib: PositiveFloat
    """Memory that the device had, GiB."""


class TunedRate(NamedTuple):
    """How fast one rank was when it was tuned.

    Attributes:
        images_per_second_per_rank: without loading and communication.
        device: that did so.
        path: the file that says so.
    """

    images_per_second_per_rank: float
    device: str
    path: str

    @property
    def assumption(self) -> str:
        """The sentence that must be shown beside hours that rest on it."""
        return (
            f"every rank does as one {self.device} did when it was tuned, without loading and "
            f"communication: {self.images_per_second_per_rank:,.1f} images/s ({self.path})"
        )


def fields_in(overrides: Iterable[str]) -> set[str]:
    """Which of `FIELDS` some typed ``key=value`` items settle, by themselves or as a section."""
    keys = {item.partition("=")[0] for item in overrides}
    return {
        field
        for field in FIELDS
        if any(field == key or field.startswith(f"{key}.") for key in keys)
    }


def value_of(config: RunConfig, name: str) -> Any:
    """The value of a field by its dotted name, as it stands in a config's JSON."""
    value: Any = config.model_dump(mode="json")
    for part in name.split("."):
        value = value[part]
    return value


def values_of(config: RunConfig) -> Settled:
    """What a config says of `FIELDS`."""
    return {name: value_of(config, name) for name in FIELDS}


def work_of(config: RunConfig) -> dict[str, Any]:
    """What of a config decides how fast a rank is, by dotted name."""
    return dict(flatten({name: value_of(config, name) for name in WORK}))


def typed_as(settings: Settled) -> list[str]:
    """What to type for settings.

    Example:
        >>> typed_as({"engine.compile": True, CHECKPOINTING: ["none"] * 4})
        ['engine.compile=true', 'engine.activation_checkpointing=none']
    """
    return [f"{field}={_typed(value)}" for field, value in settings.items()]


def _typed(value: Any) -> str:
    if isinstance(value, list):
        words = [_typed(item) for item in value]
        return words[0] if len(set(words)) == 1 else f"[{','.join(words)}]"
    return value if isinstance(value, str) else json.dumps(value)


def place_of(config: RunConfig) -> Place:
    """Where a config's devices are had."""
    cluster = config.cluster
    slurm = cluster.executor == "slurm"
    return Place(
        executor=cluster.executor,
        partition=cluster.partition if slurm else None,
        constraint=cluster.constraint if slurm else None,
    )


def torch_version() -> str:
    """The version of torch that is installed, without importing it."""
    return version("torch")


def tuned_path(runs_dir: str, config: str, device: str) -> Path:
    """Where the file of a config and a device lies."""
    slug = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    return Path(runs_dir) / FOLDER / f"{config}-{slug}.yaml"


def write_tuned(path: Path, tuned: Tuned) -> None:
    """Write the file whole, or leave what is there.

    Raises:
        ConfigError: it cannot be written.
    """
    heading = (
        f"# Settings that python -m pretrain.tune --config {tuned.config} measured. Runs of that "
        "config\n# take them up where all of this fits them; tuned=none refuses it.\n"
    )
    text = yaml.safe_dump(tuned.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    try:
        make_private(path.parent)
        replace_text(path, heading + text)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}; give runs_dir=PATH"
        ) from None


def read_tuned(path: Path) -> Tuned:
    """Read the file.

    Raises:
        ConfigError: it is not there, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        tuned = Tuned.model_validate_json(json.dumps(values))
    except OSError as error:
        raise ConfigError(
            f"tuned: {path}: cannot be read: {error.strerror}; expected auto, none or a file that "
            "python -m pretrain.tune wrote"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError):
        problem = "no YAML"
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(str(part) for part in first['loc']) or 'content'}: {first['msg']}"
    else:
        if set(tuned.settings) == set(FIELDS):
            return tuned
        problem = f"settings: expected {', '.join(FIELDS)}, got {', '.join(tuned.settings)}"
    raise ConfigError(
        f"tuned: {path}: not what python -m pretrain.tune writes ({problem}); remove it or tune "
        "again"
    )
