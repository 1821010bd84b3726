"""The command that launches runs: ``python launch/slurm.py --config NAME [key=value …]``."""

import os
import shlex
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    # Python puts launch/ first; its modules are no top-level names, and this source tree is meant.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.build_data import build_data, check_build
from launch.processes import locked, private_files
from launch.request import Request, load, parse
from launch.scheduler import why_no_slurm
from launch.script import JobSpec, ask_slurm, check_no_secrets, check_slurm, spec_of
from launch.script import render as render_script
from launch.snapshot import copy_source, write_environment
from launch.status import Queue, job_to_wait_for, look
from launch.submit import Job, submit_local, submit_slurm
from launch.sweep import Sweep, submit_sweep, sweep_spec
from pretrain.config.schema import RunConfig
from pretrain.errors import LaunchError, run_command
from pretrain.plan.derive import Plan, make_plan
from pretrain.plan.render import render
from pretrain.plan.resources import gpus_here, resources_of
from pretrain.preflight import (
    check_initial_weights,
    check_output,
    free_disk_bytes,
    initial_weights_path,
    manifest_if_built,
    probe_split_if_built,
    require_manifest,
)
from pretrain.run_directory import RunDirectory


@dataclass(frozen=True)
class Part:
    """One run of the command: what is asked, what follows from it, and where."""

    config: RunConfig
    plan: Plan
    run: RunDirectory


def main(arguments: list[str]) -> int:
    """Launch, plan or only show what would be launched.

    Returns:
        0, or when following the exit code of the runs: 70 failed, 75 stopped.

    Raises:
        PretrainError: anything that cannot be launched; nothing was written then.
    """
    options = parse(arguments)
    request = load(options)
    configs = request.configs
    if options.plan:
        print("\n\n".join(render(part.config, part.plan) for part in map(_plan, configs)))
        return 0
    _check(request)
    slurm = configs[0].cluster.executor == "slurm"
    if options.dry_run:
        _show(request, slurm=slurm)
        return 0
    _build_missing(configs)
    parts = [_plan(config) for config in configs]
    for part in parts:
        print(render(part.config, part.plan), flush=True)
    command = ["python", "launch/slurm.py", *arguments]
    with private_files():
        active = _launch(request, parts, slurm=slurm, command=command)
    if options.follow or (options.follow is None and not slurm):
        from launch.follow import follow

        return follow([part.run for part in parts], independent=request.sweep is not None)
    if active:
        print("watch: the same command with --follow")
    return 0


def _plan(config: RunConfig) -> Part:
    manifest = manifest_if_built(config)
    plan = make_plan(
        config,
        manifest,
        resources_of(config.cluster, gpus_here()),
        free_disk_bytes=free_disk_bytes(config),
        probe=probe_split_if_built(config),
    )
    return Part(config, plan, _run_of(config))


def _run_of(config: RunConfig) -> RunDirectory:
    return RunDirectory(Path(config.runs_dir) / config.name)


def _check(request: Request) -> None:
    """Refuse everything that cannot be launched, before anything is written."""
    configs = request.configs
    slurm = configs[0].cluster.executor == "slurm"
    if not slurm and (request.after is not None or (request.concurrent or 1) > 1):
        option = "--after" if request.after is not None else "--max-concurrent"
        raise LaunchError(
            f"{option}: needs Slurm; on this machine the runs of one command take turns, as each "
            "uses all of it"
        )
    job_to_wait_for(request.after, Queue())
    if slurm:
        why = why_no_slurm()
        if why is not None:
            raise LaunchError(f"cluster.executor: slurm: {why}; give --cluster local")
        for config in configs:
            check_slurm(config)
    earlier: set[str] = set()
    for config in configs:
        check_no_secrets(config, os.environ)
        if manifest_if_built(config) is not None or not config.data.build_automatically:
            require_manifest(config)
            _plan(config)
        else:
            check_build(config)
        if config.init_from not in earlier:
            check_initial_weights(config)
            _check_parent(config)
        check_output(config)
        _run_of(config).check(config)
        earlier.add(config.name)


def _check_parent(config: RunConfig) -> None:
    """Refuse to start from a run that is neither done nor under way; a path says it is meant."""
    parent = initial_weights_path(config)
    if parent is None or "/" in (config.init_from or "") or not RunDirectory(parent).exists:
        return
    status = look(RunDirectory(parent), Queue())
    if status.phase != "done" and not status.is_active:
        raise LaunchError(
            f"init_from: {config.init_from} is not done ({status.detail}); launch both with one "
            "command (--config … --config …), or give init_from=PATH"
        )


def _build_missing(configs: list[RunConfig]) -> None:
    for config in configs:
        if manifest_if_built(config) is None:
            build_data(config)
        require_manifest(config)


def _show(request: Request, *, slurm: bool) -> None:
    names = {config.name for config in request.configs}
    after = [job for job in [job_to_wait_for(request.after, Queue())] if job is not None]
    new: list[Part] = []
    for part in map(_plan, request.configs):
        print(render(part.config, part.plan))
        if manifest_if_built(part.config) is None:
            print(f"would build the data: {part.config.data.build}")
        print(f"would create {part.run.path}" if not part.run.exists else f"uses {part.run.path}")
        status = look(part.run, Queue())
        if status.phase == "done" or status.is_active:
            print(f"would submit nothing: {status.phase}: {status.detail}")
            continue
        if part.config.init_from in names:
            how = " (sbatch --dependency=afterok: and the number of its job)" if slurm else ""
            print(f"would wait for {part.config.init_from}{how}")
        if not slurm:
            ranks = f"{part.plan.ranks_per_node} ranks"
            print(f"would start a supervisor on this machine with {ranks}: {_rank_line(part.run)}")
            continue
        new.append(part)
        if request.sweep is None:
            _show_job(spec_of(part.run, part.config, part.plan.ranks_per_node, after))
    if new and request.sweep is not None:
        _show_job(_array_of(request, request.sweep, new, after))


def _show_job(spec: JobSpec) -> None:
    script = render_script(spec)
    print(script)
    print(f"sbatch --test-only: {ask_slurm(script)}")


def _array_of(request: Request, sweep: Sweep, new: list[Part], after: list[str]) -> JobSpec:
    spec = sweep_spec(sweep, len(new), new[0].plan.ranks_per_node, request.concurrent)
    return replace(spec, after=tuple(after))


def _rank_line(run: RunDirectory) -> str:
    from launch.ranks import rank_command

    return shlex.join(rank_command(run))


def _launch(
    request: Request, parts: list[Part], *, slurm: bool, command: list[str]
) -> list[RunDirectory]:
    """Submit what is neither done nor active; return all that is active now, in order."""
    queue = Queue(seconds=0)
    with ExitStack() as stack:
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
        if slurm and new:
            _submit_slurm(request, new, queue)
        elif new:
            parents = [_active_parent(part.config, queue) for part in new]
            waits_for = {run.path: run for run, _ in filter(None, parents)}
            job = submit_local([part.run for part in new], waits_for=list(waits_for.values()))
            print(f"started job {job.job_id} on {job.host}, {time.strftime('%H:%M:%S')}")
    return active


def _active_parent(config: RunConfig, queue: Queue) -> tuple[RunDirectory, Job] | None:
    """The run this one starts from and the job that has it, if one has."""
    path = initial_weights_path(config)
    if path is None:
        return None
    run = RunDirectory(path)
    status = look(run, queue)
    return (run, status.job) if status.is_active and status.job else None


def _submit_slurm(request: Request, parts: list[Part], queue: Queue) -> None:
    common = job_to_wait_for(request.after, queue)
    if request.sweep is not None:
        after = sorted({job for part in parts for job in _jobs_before(part, common, queue)})
        runs = [part.run for part in parts]
        jobs = submit_sweep(request.sweep, runs, _array_of(request, request.sweep, parts, after))
        for part, job in zip(parts, jobs, strict=True):
            _say_submitted(part, job, after)
        return
    for part in parts:
        after = _jobs_before(part, common, queue)
        _say_submitted(part, submit_slurm(part.run, after=after), after)


def _jobs_before(part: Part, common: str | None, queue: Queue) -> list[str]:
    """Jobs that must succeed before this run starts."""
    parent = _active_parent(part.config, queue)
    jobs = [parent[1].job_id if parent else None, common]
    return list(dict.fromkeys(job for job in jobs if job is not None))


def _say_submitted(part: Part, job: Job, after: list[str]) -> None:
    waits = f", after job {', '.join(after)}" if after else ""
    print(f"{part.config.name}: submitted as job {job.job_id}{waits}, in {part.run.path}")


if __name__ == "__main__":
    run_command(main)
