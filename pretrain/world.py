"""Who this process is among the others: a value, read from the launcher's environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.errors import LaunchError


@dataclass(frozen=True)
class World:
    """The place of one process in the job.

    Attributes:
        rank: index of this process among all, 0 to ``size`` - 1.
        size: number of processes (ranks) in the job.
        local_rank: index of this process on its node; selects its device.
        local_size: number of ranks on this node.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def world_from_environment(environment: Mapping[str, str] | None = None) -> World:
    """Read the world from torchrun's variables, else from ``srun``'s, else be alone.

    Raises:
        LaunchError: a launcher's variables are there in part only, or are not numbers.
    """
    env = os.environ if environment is None else environment
    torchrun = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" in env or "WORLD_SIZE" in env:
        return _read(env, torchrun)
    # SLURM_STEP_NUM_TASKS is set by srun only: a shell inside an allocation is not a rank.
    if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        per_node = env.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0]
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "LOCAL_TASKS")
        return _read({**env, "LOCAL_TASKS": per_node}, names)
    return World()


def _read(env: Mapping[str, str], names: tuple[str, str, str, str]) -> World:
    missing = [name for name in names if name not in env]
    if missing:
        raise LaunchError(
            f"environment: {' and '.join(missing)} not set beside {names[0]}; "
            "start the ranks with torchrun, srun or launch/slurm.py"
        )
    try:
        rank, size, local_rank, local_size = (int(env[name]) for name in names)
    except ValueError as error:
        raise LaunchError(f"environment: {', '.join(names)} must be integers ({error})") from None
    return World(rank=rank, size=size, local_rank=local_rank, local_size=local_size)
