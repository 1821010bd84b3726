"""Who this process is, from each launcher's environment."""

import pytest

from pretrain.errors import LaunchError
from pretrain.world import World, world_from_environment


def test_alone_without_a_launcher():
    assert world_from_environment({}) == World(0, 1, 0, 1)


def test_torchrun():
    env = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert world_from_environment(env) == World(5, 8, 1, 4)


def test_srun_and_not_a_shell_inside_an_allocation():
    env = {
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    assert world_from_environment(env) == World(3, 4, 1, 2)
    del env["SLURM_STEP_NUM_TASKS"]
    assert world_from_environment(env) == World()


def test_half_an_environment_is_refused():
    with pytest.raises(LaunchError, match="LOCAL_RANK and LOCAL_WORLD_SIZE not set"):
        world_from_environment({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(LaunchError, match="must be integers"):
        world_from_environment(
            {"RANK": "a", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        )
