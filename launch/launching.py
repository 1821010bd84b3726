"""Handing checked runs over: shards built, directories created, jobs submitted. No torch."""

import time
from collections.abc import Sequence
from contextlib import ExitStack

from launch.build_data import build_data
from launch.planning import Part
from launch.processes import locked, private_files
from launch.snapshot import copy_source, write_environment
from launch.status import Queue, job_to_wait_for, look
from launch.submit import Job, submit_local, submit_slurm
from launch.sweep import Sweep, submit_sweep, sweep_spec
from pretrain.config.schema import RunConfig
from pretrain.preflight import initial_weights_path, manifest_if_built, require_manifest
from pretrain.run_directory import RunDirectory


def build_missing(configs: Sequence[RunConfig]) -> None:
    """Build the shards that the configs ask for and that are not there; look at all of them.

    Raises:
        DataError: they cannot be built, or disagree with their manifest.
    """
    for config in configs:
        if config.task == "results":
            continue
        if manifest_if_built(config) is None:
            build_data(config)
        require_manifest(config)


def submit(
    parts: Sequence[Part],
    *,
    command: Sequence[str],
    sweep: Sweep | None = None,
    concurrent: int | None = None,
    after: RunDirectory | None = None,
) -> list[RunDirectory]:
    """Create the runs that are neither done nor active and hand them to their executor.

    Args:
        parts: checked runs of one executor, each after the one it starts from.
        command: what was typed, for the record.
        sweep: whose points the runs are; None where they are runs by themselves.
        concurrent: most points of the sweep that run at a time; None for all.
        after: a run that must be done first.

    Returns:
        The runs that are active now, in order.

    Raises:
        PretrainError: a run directory cannot be made, or Slurm refuses a job.
    """
    slurm = parts[0].config.cluster.executor == "slurm"
    queue = Queue(seconds=0)
    with ExitStack() as stack:
        stack.enter_context(private_files())
        for part in parts:
            part.run.make()
            stack.enter_context(locked(part.run.submit_lock_path))
        new: list[Part] = []
        active: list[RunDirectory] = []
        for part in parts:
            status = look(part.run, queue)
            if status.phase == "done":
                print(f"{part.config.name}: already done, in {part.run.path}")
                continue
            active.append(part.run)
            if status.is_active:
                job = status.job.job_id if status.job else "unknown"
                print(f"{part.config.name}: already active as job {job}; nothing is submitted")
            else:
                new.append(part)
        for part in new:
            saved = part.run.newest_checkpoint_step()
            if saved is not None:
                print(f"{part.config.name}: goes on from step {saved}")
            part.run.create(part.config, part.plan.to_json())
            copy_source(part.run)
            write_environment(part.run, command)
        common = job_to_wait_for(after, queue)
        if slurm and sweep is not None and new:
            _submit_sweep(sweep, new, concurrent, common, queue)
        elif slurm:
            _submit_slurm(new, common, queue)
        elif new:
            _submit_local(new, queue)
    return active


def _active_parent(config: RunConfig, queue: Queue) -> tuple[RunDirectory, Job] | None:
    """The run this one starts from and the job that has it, if one has."""
    path = initial_weights_path(config)
    if path is None:
        return None
    run = RunDirectory(path)
    status = look(run, queue)
    return (run, status.job) if status.is_active and status.job else None


def _submit_local(parts: Sequence[Part], queue: Queue) -> None:
    parents = [_active_parent(part.config, queue) for part in parts]
    waits_for = {run.path: run for run, _ in filter(None, parents)}
    job = submit_local([part.run for part in parts], waits_for=list(waits_for.values()))
    print(f"started job {job.job_id} on {job.host}, {time.strftime('%H:%M:%S')}")


def _submit_slurm(parts: Sequence[Part], common: str | None, queue: Queue) -> None:
    for part in parts:
        after = _jobs_before(part, common, queue)
        _say_submitted(part, submit_slurm(part.run, after=after), after)


def _submit_sweep(
    sweep: Sweep, parts: Sequence[Part], concurrent: int | None, common: str | None, queue: Queue
) -> None:
    after = sorted({job for part in parts for job in _jobs_before(part, common, queue)})
    spec = sweep_spec(sweep, len(parts), parts[0].plan.ranks_per_node, concurrent, after)
    jobs = submit_sweep(sweep, [part.run for part in parts], spec)
    for part, job in zip(parts, jobs, strict=True):
        _say_submitted(part, job, after)


def _jobs_before(part: Part, common: str | None, queue: Queue) -> list[str]:
    """Jobs that must succeed before this run starts."""
    parent = _active_parent(part.config, queue)
    jobs = [parent[1].job_id if parent else None, common]
    return list(dict.fromkeys(job for job in jobs if job is not None))


def _say_submitted(part: Part, job: Job, after: Sequence[str]) -> None:
    waits = f", after job {', '.join(after)}" if after else ""
    print(f"{part.config.name}: submitted as job {job.job_id}{waits}, in {part.run.path}")
