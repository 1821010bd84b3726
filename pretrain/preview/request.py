"""Which micro-batch somebody asks to see, checked before anything is made. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.load import expand_chain, load_run
from pretrain.config.schema import RunConfig
from pretrain.data.manifest import Manifest
from pretrain.data.skips import Skip
from pretrain.errors import ConfigError
from pretrain.files import read_json
from pretrain.lookup import RUNS_DIR, find_run
from pretrain.plan.derive import make_plan
from pretrain.plan.resources import Resources
from pretrain.preflight import free_disk_bytes, require_manifest
from pretrain.run_directory import RunDirectory


@dataclass(frozen=True)
class Request:
    """Which micro-batch of what is to be drawn.

    Attributes:
        config: the run.
        manifest: of its data.
        step: from 0.
        number: of the micro-batch in the global batch, from 0.
        micro_batch: images of it.
        skips: global batches that the run leaves out.
    """

    config: RunConfig
    manifest: Manifest
    step: int
    number: int
    micro_batch: int
    skips: Sequence[Skip] = ()

    @property
    def micro_batches(self) -> int:
        """How many make a global batch."""
        return self.config.batch.global_size // self.micro_batch


def request_of_config(
    name: str, overrides: Sequence[str] = (), *, step: int = 0, number: int = 0
) -> Request:
    """Ask for a micro-batch of a config, whether or not there is a run of it.

    Micro-batches are as one rank would have them.

    Args:
        name: a file in configs/, or a path to one.
        overrides: ``key=value`` each.
        step: from 0.
        number: of the micro-batch in the global batch, from 0.

    Raises:
        PretrainError: there is no such config, its shards are missing, or it has no such step or
            micro-batch.
    """
    names = expand_chain([name])
    if len(names) > 1:
        raise ConfigError(f"--config {name}: a chain of {', '.join(names)}; look at one of them")
    config = load_run(names[0], overrides)
    _check_trains(config, f"--config {name}")
    manifest = require_manifest(config)
    # Whatever it would compute on: which images a step takes does not depend on it.
    alone = Resources(device="cuda", nodes=1, ranks_per_node=1)
    plan = make_plan(config, manifest, alone, free_disk_bytes=free_disk_bytes(config))
    request = Request(config, manifest, step, number, plan.micro_batch)
    return _checked(request, plan.total_steps)


def request_of_run(
    name: str, runs_dir: Path = Path(RUNS_DIR), *, step: int = 0, number: int = 0
) -> Request:
    """Ask for a micro-batch of a run, divided as it was planned, without what it left out.

    Args:
        name: of the run, or its directory.
        runs_dir: where runs are that are given by name.
        step: from 0.
        number: of the micro-batch in the global batch, from 0.

    Raises:
        PretrainError: there is no such run, its shards are missing, or it has no such step or
            micro-batch.
    """
    run = find_run(name, runs_dir)
    config = run.read_config()
    _check_trains(config, f"--run {name}")
    manifest = require_manifest(config)
    micro_batch, total_steps = _planned(run)
    # Imports torch, which whoever looks at the request needs anyway.
    from pretrain.recovery import read_skips

    return _checked(
        Request(config, manifest, step, number, micro_batch, read_skips(run)), total_steps
    )


def _checked(request: Request, total_steps: int) -> Request:
    """Refuse what a run has not."""
    if not 0 <= request.step < total_steps:
        raise ConfigError(
            f"--step: expected 0 to {total_steps - 1}, since the run has {total_steps} steps, "
            f"got {request.step}"
        )
    if not 0 <= request.number < request.micro_batches:
        raise ConfigError(
            f"--micro-batch: expected 0 to {request.micro_batches - 1}, since a global batch is "
            f"{request.micro_batches} of {request.micro_batch} images, got {request.number}"
        )
    return request


def _planned(run: RunDirectory) -> tuple[int, int]:
    plan = read_json(run.plan_path) or {}
    try:
        return int(plan["micro_batch"]), int(plan["total_steps"])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{run.plan_path}: missing or damaged, and it says how the run divides its batches; "
            "use --config"
        ) from None


def _check_trains(config: RunConfig, what: str) -> None:
    if config.task != "train":
        raise ConfigError(f"{what}: makes results of other runs and trains on no images")
