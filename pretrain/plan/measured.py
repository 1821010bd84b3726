"""The rate at which an earlier run of the same work trained, as its directory has it. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.schema import RunConfig
from pretrain.errors import PretrainError
from pretrain.files import read_json
from pretrain.models.cost import count_forward_macs
from pretrain.models.variants import masked_shape, shape_of
from pretrain.plan.resources import Resources
from pretrain.run_directory import RunDirectory

STEPS_MIN = 50
"""A run that did fewer steps has measured its start and not its rate."""
RUNS_READ_MAX = 200
"""Newest runs that are looked at; a login node must answer at once."""
_ALIKE = (
    "model",
    "masking",
    "engine",
    "batch.micro_size_max",
    "optim.kind",
    "optim.implementation",
    "ema",
    "cluster.partition",
    "cluster.constraint",
)
"""What decides the rate of a rank on one kind of device, the device itself by where it is had."""


@dataclass(frozen=True)
class MeasuredRate:
    """How fast a rank trained.

    Attributes:
        images_per_second_per_rank: with everything but evaluation and saving counted.
        run: name of the run.
        ranks: how many it had.
    """

    images_per_second_per_rank: float
    run: str
    ranks: int

    @property
    def assumption(self) -> str:
        """The sentence that must be shown beside hours that rest on it."""
        each = f"{self.images_per_second_per_rank:,.1f} images/s of each of its {self.ranks} rank"
        return f"every rank does as run {self.run} measured: {each}{'s'[: self.ranks > 1]}"


def measured_rate(config: RunConfig, resources: Resources) -> MeasuredRate | None:
    """Find the newest run beside this one, itself included, that did the same work per image.

    Same model, precision and engine settings, on the same kind of device of the same partition.
    Runs that cannot be read are passed over.
    """
    shape = shape_of(config.model)
    macs = count_forward_macs(shape if config.masking is None else masked_shape(shape))
    for path in _newest_first(Path(config.runs_dir)):
        run = RunDirectory(path)
        plan, progress = read_json(run.plan_path), read_json(run.progress_path)
        if plan is None or progress is None or plan.get("device") != resources.device:
            continue
        if plan.get("forward_macs_per_image") != macs:  # its config takes longer to read
            continue
        rate = _rate(plan, progress)
        if rate is None:
            continue
        try:
            alike = _alike(run.read_config(), config)
        except PretrainError:
            continue
        if alike:
            images_per_second, ranks = rate
            return MeasuredRate(images_per_second / ranks, path.name, ranks)
    return None


def _newest_first(runs_dir: Path) -> list[Path]:
    """Return run directories by the age of their newest progress."""
    found: list[tuple[float, Path]] = []
    try:
        for path in runs_dir.iterdir():
            progress = RunDirectory(path).progress_path
            if progress.is_file():
                found.append((progress.stat().st_mtime, path))
    except OSError:
        return []
    return [path for _, path in sorted(found, reverse=True)[:RUNS_READ_MAX]]


def _rate(plan: dict[str, Any], progress: dict[str, Any]) -> tuple[float, int] | None:
    """Return (images per second, ranks), or None where too little was measured."""
    try:
        step, rate = int(progress["step"]), float(progress["images_per_second"])
        ranks = int(plan["nodes"]) * int(plan["ranks_per_node"])
    except (KeyError, TypeError, ValueError):
        return None
    return (rate, ranks) if step >= STEPS_MIN and rate > 0 and ranks > 0 else None


def _alike(one: RunConfig, other: RunConfig) -> bool:
    return all(_value(one, name) == _value(other, name) for name in _ALIKE)


def _value(config: RunConfig, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value
