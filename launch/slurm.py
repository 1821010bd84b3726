"""The command that launches runs: ``python launch/slurm.py --config NAME [key=value …]``."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Python puts launch/ first; its modules are no top-level names, and this source tree is meant.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.launching import build_missing, submit
from launch.planning import Part, plan_part
from launch.preflight import check
from launch.scheduler import why_no_slurm
from launch.status import Queue, look
from launch.submit import ask_slurm, sbatch_script
from pretrain.config.load import RESULTS, expand_chain, load_run, results_of
from pretrain.config.schema import RunConfig
from pretrain.errors import LaunchError, run_command
from pretrain.plan.render import total_cost
from pretrain.preflight import manifest_if_built
from pretrain.run_directory import RunDirectory


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
        _print_plans([plan_part(config) for config in configs])
        return 0
    for warning in check(configs):
        print(f"warning: {warning}", file=sys.stderr)
    slurm = configs[0].cluster.executor == "slurm"
    if options.dry_run:
        _show(configs, slurm=slurm)
        return 0
    build_missing(configs)
    parts = [plan_part(config) for config in configs]
    _print_plans(parts)
    active = submit(parts, command=["python", "launch/slurm.py", *arguments])
    if options.follow or (options.follow is None and not slurm):
        from launch.follow import follow

        return follow([part.run for part in parts])
    if active:
        print("watch: the same command with --follow")
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
        "whose init_from names another waits for it; 'results' makes use of the one before it",
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
    trained = [name for name in names if name != RESULTS]
    if options.name is not None and len(trained) > 1:
        raise LaunchError(
            f"--name: names one run, but {len(trained)} are given: {', '.join(trained)}"
        )
    if names[0] == RESULTS:
        raise LaunchError(f"--config {RESULTS}: of which run? Name it before: --config NAME")
    cluster = options.cluster
    if cluster == "auto":
        why = why_no_slurm()
        cluster = "slurm" if why is None else "local"
        if why is not None:
            print(f"running on this machine: {why}", file=sys.stderr)
    configs: list[RunConfig] = []
    for name in names:
        if name == RESULTS:
            configs.append(results_of(configs[-1]))
        else:
            configs.append(
                load_run(name, options.overrides, cluster=cluster, run_name=options.name)
            )
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


def _print_plans(parts: Sequence[Part]) -> None:
    print("\n\n".join(part.text() for part in parts), flush=True)
    if len(parts) > 1:
        print(f"\n{total_cost([part.plan for part in parts])}", flush=True)


def _show(configs: list[RunConfig], *, slurm: bool) -> None:
    names = {config.name for config in configs}
    for part in map(plan_part, configs):
        print(part.text())
        if part.config.task == "train" and manifest_if_built(part.config) is None:
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
        print(f"sbatch --test-only: {ask_slurm(script).text}")


def _rank_line(run: RunDirectory) -> str:
    from launch.ranks import rank_command

    return shlex.join(rank_command(run))


if __name__ == "__main__":
    run_command(main)
