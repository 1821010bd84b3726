"""Which micro-batch somebody asks to see, checked before anything is made. Imports no torch."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.load import expand_chain, load_run
from pretrain.config.schema import RunConfig
from pretrain.data.manifest import Manifest
from pretrain.data.skips import Skip
from pretrain.errors import ConfigError
from pretrain.files import read_json
from pretrain.lookup import find_run
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


def check_options(options: argparse.Namespace) -> None:
    """Refuse numbers and files that cannot be meant.

    Raises:
        ConfigError: names the switch.
    """
    for name, least in (("step", 0), ("micro_batch", 0), ("images", 1), ("columns", 1)):
        value = getattr(options, name)
        if value < least:
            switch = name.replace("_", "-")
            raise ConfigError(f"--{switch}: expected at least {least}, got {value}")
    out, folder = options.out, options.out.absolute().parent
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out: {out}: expected a name that ends in .png")
    if out.is_dir():
        raise ConfigError(f"--out: {out}: is a directory; expected a file to write")
    if not folder.is_dir():
        raise ConfigError(f"--out: {out}: {folder} is not a directory; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: {out}: {folder} is not writable; give another path")


def request_of(options: argparse.Namespace) -> Request:
    """Find out what is asked for and make sure that there is such a thing.

    Raises:
        PretrainError: there is no such config or run, its shards are missing, or it has no such
            step or micro-batch.
    """
    if options.run is None:
        request, total_steps = _of_config(options)
    else:
        request, total_steps = _of_run(options)
    if request.step >= total_steps:
        raise ConfigError(
            f"--step: {request.step} is beyond the end: the run has {total_steps:,} steps, "
            f"0 to {total_steps - 1}"
        )
    if request.number >= request.micro_batches:
        raise ConfigError(
            f"--micro-batch: {request.number} is beyond the global batch of "
            f"{request.config.batch.global_size}: it has {request.micro_batches} of "
            f"{request.micro_batch} images, 0 to {request.micro_batches - 1}"
        )
    return request


def _of_config(options: argparse.Namespace) -> tuple[Request, int]:
    names = expand_chain([options.config])
    if len(names) > 1:
        raise ConfigError(
            f"--config {options.config}: a chain of {', '.join(names)}; look at one of them"
        )
    config = load_run(names[0], options.overrides)
    _check_trains(config, f"--config {options.config}")
    manifest = require_manifest(config)
    # On one rank, whatever it would compute on: which images a step takes does not depend on it.
    alone = Resources(device="cuda", nodes=1, ranks_per_node=1)
    plan = make_plan(config, manifest, alone, free_disk_bytes=free_disk_bytes(config))
    request = Request(config, manifest, options.step, options.micro_batch, plan.micro_batch)
    return request, plan.total_steps


def _of_run(options: argparse.Namespace) -> tuple[Request, int]:
    if options.overrides:
        raise ConfigError(
            f"--run {options.run}: its config is settled; key=value goes with --config"
        )
    run = find_run(options.run, Path(options.runs_dir))
    config = run.read_config()
    _check_trains(config, f"--run {options.run}")
    manifest = require_manifest(config)
    micro_batch, total_steps = _planned(run)
    # Imports torch, which a run needs anyway.
    from pretrain.recovery import read_skips

    request = Request(
        config, manifest, options.step, options.micro_batch, micro_batch, read_skips(run)
    )
    return request, total_steps


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
