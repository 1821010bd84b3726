"""``python -m pretrain --config NAME [key=value …]``: train in the processes this is started in."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pretrain.config.load import expand_chain, load_run
from pretrain.config.schema import RunConfig
from pretrain.data.manifest import Manifest, Split
from pretrain.errors import ConfigError, LaunchError, run_command
from pretrain.job import Job
from pretrain.metrics.report.process import write_at_end
from pretrain.plan.derive import Plan, make_plan
from pretrain.plan.render import render
from pretrain.plan.resources import gpus_here, resources_of_world
from pretrain.plan.take_up import take_up, tuned_rate
from pretrain.preflight import (
    check_initial_weights,
    check_output,
    free_disk_bytes,
    manifest_if_built,
    probe_split_if_built,
    read_probe,
    require_manifest,
)
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import lock_holder, run_lock
from pretrain.world import World, world_from_environment

ATTEMPT_VARIABLE = "PRETRAIN_ATTEMPT"
"""Set by the supervisor: which life of the run this is."""


def main(arguments: Sequence[str]) -> int:
    """Train, alone or as one of the ranks that torchrun or ``srun`` started; return the exit code.

    Raises:
        PretrainError: bad input, before anything is written.
    """
    options = _parser().parse_intermixed_args(arguments)
    world = world_from_environment()
    if options.run is None:
        names = expand_chain([options.config])
        if len(names) > 1:
            raise ConfigError(
                f"--config {options.config}: a chain of {', '.join(names)}; "
                "train one of them here, or use launch/slurm.py"
            )
        config = load_run(names[0], options.overrides, run_name=options.name)
        config, said = take_up(config, names[0], options.overrides)
        for line in said if world.rank == 0 else ():
            print(line, file=sys.stderr)
        run = RunDirectory(Path(config.runs_dir) / config.name)
    else:
        if options.overrides or options.name is not None:
            raise ConfigError(
                f"--run {options.run}: its config is settled; key=value and --name go with --config"
            )
        run = RunDirectory(options.run)
        config = run.read_config()
    if options.plan:
        print(_plan_text(config, world))
        return 0
    if config.task == "results":
        if options.run is None:
            raise ConfigError(
                "task: results is made by launch/slurm.py (--config NAME --config results)"
            )
        from pretrain.results import make_results

        make_results(run, config, world, _attempt(run))
        return 0
    return _train(run, config, world, create=options.run is None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain",
        description="Train in the processes this is started in: alone, under torchrun or srun.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="NAME", help="a file in configs/, or a path to one")
    what.add_argument("--run", metavar="DIR", help="take up an existing run directory")
    parser.add_argument("--name", help="name of the run (default: the config's)")
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as optim.lr=1e-3")
    return parser


def _plan_text(config: RunConfig, world: World) -> str:
    probe = probe_split_if_built(config)
    return render(config, _plan(config, world, manifest_if_built(config), probe))


def _plan(config: RunConfig, world: World, manifest: Manifest | None, probe: Split | None) -> Plan:
    resources = resources_of_world(world, config.cluster, gpus_here())
    free = free_disk_bytes(config)
    rate = tuned_rate(config, resources.world_size)
    return make_plan(config, manifest, resources, free_disk_bytes=free, probe=probe, measured=rate)


def _train(run: RunDirectory, config: RunConfig, world: World, *, create: bool) -> int:
    manifest = require_manifest(config, world.rank, world.size)
    probe = read_probe(config, manifest)
    plan = _plan(config, world, manifest, probe.manifest.split(probe.split) if probe else None)
    check_initial_weights(config)
    check_output(config)
    run.check(config)

    with ExitStack() as stack:
        if create and world.rank == 0:
            stack.enter_context(_alone(run))
        return _join(Job(run, config, plan, manifest, world, _attempt(run), probe), create=create)


@contextmanager
def _alone(run: RunDirectory) -> Iterator[None]:
    """Hold the run's lock while training without a supervisor.

    Raises:
        LaunchError: somebody else has it.
    """
    run.make()
    with run_lock(run, "no job") as held:
        if not held:
            holder = lock_holder(run) or {}
            raise LaunchError(
                f"{run.path}: is being trained by process {holder.get('pid')} on "
                f"{holder.get('host')}; wait for its end, or give another --name"
            )
        yield


def _join(job: Job, *, create: bool) -> int:
    """Join the other ranks and train."""
    # Only now is torch worth its seconds.
    import torch

    from pretrain import dist
    from pretrain.train import train

    dist.initialize(
        job.world, torch.device(job.device), job.config.engine.collective_timeout_seconds
    )
    if create and job.world.rank == 0:
        job.run.create(job.config, job.plan.to_json())
        print(render(job.config, job.plan), flush=True)
    dist.barrier()
    outcome = train(job)
    dist.shutdown()
    if job.world.rank == 0:
        # At a stop the supervisor writes it, once it has done what cannot wait.
        problem = write_at_end(job.run) if create or outcome == "done" else None
        if problem is not None:
            print(f"no report: {problem}", flush=True)
        print(f"{outcome}: {job.run.path}", flush=True)
    return 0


def _attempt(run: RunDirectory) -> int:
    """Return the supervisor's number of this attempt, or the one after the last that left logs."""
    if ATTEMPT_VARIABLE in os.environ:
        return int(os.environ[ATTEMPT_VARIABLE])
    if not run.attempts_dir.is_dir():
        return 1
    numbers = [int(entry.name) for entry in run.attempts_dir.iterdir() if entry.name.isdigit()]
    return max(numbers, default=0) + 1


if __name__ == "__main__":
    run_command(main)
