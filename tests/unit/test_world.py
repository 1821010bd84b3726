"""Who this process is, from each launcher's environment."""

import pytest

from pretrain.errors import LaunchError
from pretrain.world import World, first_node, meeting_point, world_from_environment


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


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu01", "gpu01"),
        ("gpu01,gpu07", "gpu01"),
        ("gpu[01-04,7]", "gpu01"),
        ("127.0.0.[2-3]", "127.0.0.2"),
        ("a1,b[1-2]", "a1"),
        ("rack[1-2]n3,x", "rack1n3"),
    ],
)
def test_the_first_of_slurms_nodes(nodes, first):
    assert first_node(nodes) == first


def test_the_ranks_meet_where_the_launcher_says():
    assert meeting_point({"MASTER_ADDR": "h", "MASTER_PORT": "29400"}) == ("h", 29400)
    with pytest.raises(LaunchError, match="MASTER_PORT: expected a port number, got 'http'"):
        meeting_point({"MASTER_ADDR": "h", "MASTER_PORT": "http"})
    with pytest.raises(LaunchError, match="MASTER_ADDR not set; start the ranks with"):
        meeting_point({"MASTER_PORT": "1"})


def test_under_srun_they_meet_on_the_first_node_and_steps_do_not_collide():
    step = {"SLURM_STEP_NODELIST": "n[2-3]", "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0"}
    host, port = meeting_point(step)
    assert host == "n2"
    assert 20_000 <= port < 32_768  # from there on the kernel hands out ports by itself
    assert meeting_point({**step, "SLURM_STEP_ID": "1"})[1] != port
    assert meeting_point({**step, "SLURM_JOB_ID": "18"})[1] != port
