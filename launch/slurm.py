"""The command that launches runs: ``python launch/slurm.py --config NAME [key=value …]``."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Python puts launch/ first; its modules are no top-level names, and this source tree is meant.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.build_data import build_data, check_build
from launch.processes import locked
from launch.scheduler import why_no_slurm
from launch.snapshot import copy_source, write_environment
from launch.status import Queue, look
from launch.submit import Job, ask_slurm, check_slurm, sbatch_script, submit_local, submit_slurm
from pretrain.config.load import expand_chain, load_run
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
    options = _parse(arguments)
    configs = _load(options)
    if options.plan:
        print("\n\n".join(render(part.config, part.plan) for part in map(_plan, configs)))
        return 0
    if options.dry_run:
        _check(configs)
        _show(configs, slurm=configs[0].cluster.executor == "slurm")
        return 0
    return launch(
        configs, command=["python", "launch/slurm.py", *arguments], follow_on=options.follow
    )


def launch(configs: list[RunConfig], *, command: Sequence[str], follow_on: bool | None) -> int:
    """Check, plan and submit runs, and follow them.

    Args:
        configs: of the runs, each after the one it starts from; all for the same executor.
        command: what was typed, for the record.
        follow_on: watch until the end; None does so for runs on this machine.

    Returns:
        0, or when following the exit code of the runs: 70 failed, 75 stopped.

    Raises:
        PretrainError: anything that cannot be launched; nothing was written then.
    """
    _check(configs)
    slurm = configs[0].cluster.executor == "slurm"
    _build_missing(configs)
    parts = [_plan(config) for config in configs]
    for part in parts:
        print(render(part.config, part.plan), flush=True)
    active = _launch(parts, slurm=slurm, command=command)
    if follow_on or (follow_on is None and not slurm):
        from launch.follow import follow

        return follow([part.run for part in parts])
    if active:
        print("watch: the same command with --follow, or python launch/runs.py follow RUN")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/slurm.py",
        description="Launch training runs: on this machine, or through Slurm where there is one. "
        "The same command resumes a stopped run and watches an active one.",
        epilog="Exit codes when following: 0 done, 70 failed, 75 stopped; 2 is bad input.",
    )
    add = parser.add_argument
    add(
        "--config",
        action="append",
        required=True,
        metavar="NAME",
        help="a config in configs/, or a path to one; several form a chain, in which a run "
        "whose init_from names another waits for it",
    )
    add("overrides", nargs="*", metavar="key=value", help="config fields, for every run given")
    add(
        "--cluster",
        default="auto",
        metavar="auto|local|slurm|NAME",
        help="where: a file in configs/clusters/; auto is slurm where Slurm answers, else local",
    )
    add("--name", help="name of the run and its directory; for a single run only")
    add("--plan", action="store_true", help="print every derived number and stop")
    add("--dry-run", action="store_true", help="show what would be submitted; writes nothing")
    add(
        "--follow",
        action=argparse.BooleanOptionalAction,
        help="watch until the end (default: local yes, Slurm no)",
    )
    return parser.parse_intermixed_args(arguments)


def _load(options: argparse.Namespace) -> list[RunConfig]:
    names = expand_chain(options.config)
    if options.name is not None and len(names) > 1:
        raise LaunchError(f"--name: names one run, but {len(names)} are given: {', '.join(names)}")
    cluster = options.cluster
    if cluster == "auto":
        why = why_no_slurm()
        cluster = "slurm" if why is None else "local"
        if why is not None:
            print(f"running on this machine: {why}", file=sys.stderr)
    configs = [
        load_run(name, options.overrides, cluster=cluster, run_name=options.name) for name in names
    ]
    doubled = {
        config.name for config in configs if [c.name for c in configs].count(config.name) > 1
    }
    if doubled:
        raise LaunchError(f"--config: two runs are named {min(doubled)}; each needs its own name")
    if len({config.cluster.executor for config in configs}) > 1:
        raise LaunchError("cluster.executor: the runs of one command need the same one")
    return _parents_first(configs)


def _parents_first(configs: list[RunConfig]) -> list[RunConfig]:
    """Order the runs of one command so that each comes after the one it starts from."""
    ordered: list[RunConfig] = []
    waiting = list(configs)
    while waiting:
        names = {config.name for config in waiting}
        ready = [config for config in waiting if config.init_from not in names - {config.name}]
        if not ready:
            raise LaunchError(f"init_from: {', '.join(sorted(names))} start from each other")
        ordered.append(ready[0])
        waiting.remove(ready[0])
    return ordered


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


def _check(configs: list[RunConfig]) -> None:
    """Refuse everything that cannot be launched, before anything is written."""
    if configs[0].cluster.executor == "slurm":
        why = why_no_slurm()
        if why is not None:
            raise LaunchError(f"cluster.executor: slurm: {why}; give --cluster local")
        for config in configs:
            check_slurm(config)
    earlier: set[str] = set()
    for config in configs:
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


def _show(configs: list[RunConfig], *, slurm: bool) -> None:
    names = {config.name for config in configs}
    for part in map(_plan, configs):
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
        script = sbatch_script(part.config, part.plan.ranks_per_node)
        print(script)
        print(f"sbatch --test-only: {ask_slurm(script)}")


def _rank_line(run: RunDirectory) -> str:
    from launch.ranks import rank_command

    return shlex.join(rank_command(run))


def _launch(parts: list[Part], *, slurm: bool, command: Sequence[str]) -> list[RunDirectory]:
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
        if slurm:
            _submit_slurm(new, queue)
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


def _submit_slurm(parts: list[Part], queue: Queue) -> None:
    for part in parts:
        parent = _active_parent(part.config, queue)
        after = [parent[1].job_id] if parent else []
        job = submit_slurm(part.run, after=after)
        waits = f", after job {after[0]}" if after else ""
        print(f"{part.config.name}: submitted as job {job.job_id}{waits}, in {part.run.path}")


if __name__ == "__main__":
    run_command(main)
