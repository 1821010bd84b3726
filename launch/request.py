"""What one launch command asks for: its options, and the configs that they make."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.scheduler import why_no_slurm
from launch.script import check_no_secrets
from launch.status import Queue, job_to_wait_for
from launch.sweep import Sweep, load_sweep
from pretrain.config.load import RESULTS, expand_chain, load_run, results_of
from pretrain.config.schema import RunConfig
from pretrain.errors import LaunchError
from pretrain.plan.take_up import take_up
from pretrain.run_directory import RunDirectory


@dataclass(frozen=True)
class Request:
    """What one command asks for.

    Attributes:
        configs: a run each, those that others start from first.
        sweep: whose points they are; None where they are runs by themselves.
        concurrent: most points of the sweep that run at a time; None for all.
        after: a run of another command that must be done first.
    """

    configs: list[RunConfig]
    sweep: Sweep | None = None
    concurrent: int | None = None
    after: RunDirectory | None = None


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; what it names is not looked at."""
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
    add("--name", help="name of the run and its directory; for a single run or sweep only")
    add(
        "--sweep",
        action="append",
        default=[],
        metavar="key=value,value…",
        help="run the config at each value, given again at each combination; one Slurm job array",
    )
    add(
        "--max-concurrent",
        type=int,
        metavar="N",
        help="most points of a sweep that Slurm runs at a time",
    )
    add("--after", metavar="RUN", help="wait until this run, a name or a path, is done (Slurm)")
    add("--plan", action="store_true", help="print every derived number and stop")
    add("--dry-run", action="store_true", help="show what would be submitted; writes nothing")
    add(
        "--follow",
        action=argparse.BooleanOptionalAction,
        help="watch until the end (default: local yes, Slurm no)",
    )
    return parser.parse_intermixed_args(arguments)


def load(options: argparse.Namespace) -> Request:
    """Load what a command asks for. Writes nothing.

    Raises:
        PretrainError: a config that is none, or options that do not go together.
    """
    names = expand_chain(options.config)
    _check_sweep_options(options, names)
    trained = [name for name in names if name != RESULTS]
    if options.name is not None and len(trained) > 1:
        raise LaunchError(
            f"--name: names one run, but {len(trained)} are given: {', '.join(trained)}"
        )
    if names[0] == RESULTS:
        raise LaunchError(f"--config {RESULTS}: of which run? Name it before: --config NAME")
    cluster = _cluster(options.cluster)
    if options.sweep:
        sweep = load_sweep(
            names[0], options.sweep, options.overrides, cluster=cluster, run_name=options.name
        )
        after = _after(options, sweep.configs[0])
        given = [*options.overrides, *options.sweep]
        configs = [_tuned(config, names[0], given) for config in sweep.configs]
        return Request(configs, sweep, options.max_concurrent, after)
    configs: list[RunConfig] = []
    for name in names:
        if name == RESULTS:
            configs.append(results_of(configs[-1]))
        else:
            config = load_run(name, options.overrides, cluster=cluster, run_name=options.name)
            configs.append(_tuned(config, name, options.overrides))
    doubled = {
        config.name for config in configs if [c.name for c in configs].count(config.name) > 1
    }
    if doubled:
        raise LaunchError(f"--config: two runs are named {min(doubled)}; each needs its own name")
    if len({config.cluster.executor for config in configs}) > 1:
        raise LaunchError("cluster.executor: the runs of one command need the same one")
    return Request(_parents_first(configs), after=_after(options, configs[0]))


def check_request(request: Request) -> None:
    """Refuse what no config alone can say is wrong. Writes nothing.

    Raises:
        LaunchError: options that need Slurm, a run to wait for that nobody brings to its end, or a
            config that holds a secret of the environment.
    """
    slurm = request.configs[0].cluster.executor == "slurm"
    if not slurm and (request.after is not None or (request.concurrent or 1) > 1):
        option = "--after" if request.after is not None else "--max-concurrent"
        raise LaunchError(
            f"{option}: needs Slurm; on this machine the runs of one command take turns, as each "
            "uses all of it"
        )
    for config in request.configs:
        check_no_secrets(config, os.environ)
    job_to_wait_for(request.after, Queue())


def _cluster(name: str) -> str:
    if name != "auto":
        return name
    why = why_no_slurm()
    if why is not None:
        print(f"running on this machine: {why}", file=sys.stderr)
    return "slurm" if why is None else "local"


def _tuned(config: RunConfig, name: str, given: Sequence[str]) -> RunConfig:
    """The config with the measured settings that it takes up; says which it does not."""
    config, said = take_up(config, name, given)
    for line in said:
        print(line, file=sys.stderr)
    return config


def _check_sweep_options(options: argparse.Namespace, names: list[str]) -> None:
    if options.sweep and len(names) > 1:
        raise LaunchError(f"--sweep: takes one config, got {', '.join(names)}; a sweep is no chain")
    if options.max_concurrent is not None and not options.sweep:
        raise LaunchError("--max-concurrent: limits the points of a sweep; give --sweep too")
    if options.max_concurrent is not None and options.max_concurrent < 1:
        raise LaunchError(f"--max-concurrent: expected 1 or more, got {options.max_concurrent}")


def _after(options: argparse.Namespace, config: RunConfig) -> RunDirectory | None:
    if options.after is None:
        return None
    name = options.after if "/" in options.after else f"{config.runs_dir}/{options.after}"
    return RunDirectory(Path(name).expanduser())


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
