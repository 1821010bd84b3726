"""Who this process is among the others: a value, read from the launcher's environment."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.errors import LaunchError

FIRST_STEP_PORT, STEP_PORTS, STEPS_PER_JOB = 20_000, 12_000, 31
"""Ports for ranks that ``srun`` started: below those the kernel hands out by itself."""


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


def meeting_point(environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Return host and port at which the ranks of a job find each other.

    ``MASTER_ADDR`` and ``MASTER_PORT`` where a launcher set them; under a bare ``srun`` the step's
    first node, which holds rank zero, and a port that follows from job and step.

    Raises:
        LaunchError: the environment says neither, or the port is not a number.
    """
    env = os.environ if environment is None else environment
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env]
    if not missing:
        if not env["MASTER_PORT"].isdigit():
            raise LaunchError(
                f"environment: MASTER_PORT: expected a port number, got {env['MASTER_PORT']!r}"
            )
        return env["MASTER_ADDR"], int(env["MASTER_PORT"])
    step = [env.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    if "SLURM_STEP_NODELIST" in env and all(number.isdigit() for number in step):
        job_id, step_id = (int(number) for number in step)
        port = FIRST_STEP_PORT + (STEPS_PER_JOB * job_id + step_id) % STEP_PORTS
        return first_node(env["SLURM_STEP_NODELIST"]), port
    raise LaunchError(
        f"environment: {' and '.join(missing)} not set; "
        "start the ranks with torchrun, srun or launch/slurm.py"
    )


def first_node(nodes: str) -> str:
    """Return the first name of Slurm's compressed list of nodes.

    Example:
        >>> first_node("gpu[007-012,20],login1"), first_node("a1,b[1-2]")
        ('gpu007', 'a1')
    """
    before, bracket, rest = nodes.partition("[")
    if not bracket or "," in before:
        return nodes.partition(",")[0]
    numbers, _, after = rest.partition("]")
    return before + re.split("[-,]", numbers)[0] + after.partition(",")[0]


def node_name(environment: Mapping[str, str] | None = None) -> str:
    """Return the name of this machine as Slurm has it, else as it calls itself."""
    env = os.environ if environment is None else environment
    return env.get("SLURMD_NODENAME") or socket.gethostname()


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
