"""What the config adds to the ``srun`` that starts the ranks: a container (pyxis), and its own."""

import sys
from pathlib import Path

from pretrain.config.schema import RunConfig
from pretrain.location import is_remote
from pretrain.run_directory import RunDirectory


def step_arguments(config: RunConfig, run: RunDirectory) -> list[str]:
    """Arguments of ``srun`` beyond those that every step gets.

    In a container the ranks work in the run's copy of the source, and see the paths that the config
    names at the same places.
    """
    cluster = config.cluster
    arguments = list(cluster.srun_arguments)
    if cluster.container_image is not None:
        mounts = [*cluster.container_mounts, *_own_mounts(config, run)]
        arguments += [
            f"--container-image={cluster.container_image}",
            f"--container-mounts={','.join(mounts)}",
            f"--container-workdir={run.code_path}",
        ]
    return arguments


def python_of_ranks(config: RunConfig) -> str:
    """The interpreter of the ranks: the image's, or that of this process."""
    cluster = config.cluster
    contained = cluster.executor == "slurm" and cluster.container_image is not None
    return cluster.container_python if contained else sys.executable


def paths_of(config: RunConfig, run: RunDirectory) -> list[Path]:
    """Files and directories of this machine that the ranks of a run need."""
    probe = config.eval.probe
    named = [str(run.path), config.data.cache_dir, config.init_classes]
    named += [path for path in (config.data.path, probe and probe.path) if path is not None]
    if config.init_from is not None:
        parent = config.init_from
        named.append(parent if "/" in parent else str(Path(config.runs_dir) / parent))
    return [Path(path) for path in named if path is not None and not is_remote(path)]


def _own_mounts(config: RunConfig, run: RunDirectory) -> list[str]:
    """Mounts of the paths that the config names, each but once, and none inside another."""
    targets = [Path(mount.split(":")[1]) for mount in config.cluster.container_mounts]
    mounts: list[str] = []
    for path in sorted(set(paths_of(config, run))):
        if not any(path.is_relative_to(target) for target in targets):
            targets.append(path)
            mounts.append(f"{path}:{path}")
    return mounts
