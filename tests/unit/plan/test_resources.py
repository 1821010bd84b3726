"""Ranks and devices from the cluster section, this machine, or processes already started."""

import pytest

from pretrain.config.cluster import ClusterConfig
from pretrain.errors import ConfigError
from pretrain.plan.resources import gpus_here, resources_of, resources_of_world
from pretrain.world import World


def test_local_takes_the_gpus_it_finds_or_one_cpu_rank():
    local = ClusterConfig(executor="local")
    four = resources_of(local, 4)
    assert (four.device, four.nodes, four.ranks_per_node) == ("cuda", 1, 4)
    none = resources_of(local, 0)
    assert (none.device, none.ranks_per_node) == ("cpu", 1)


def test_local_takes_one_node_and_says_so():
    fitted = resources_of(ClusterConfig(executor="local", nodes=4), 2)
    assert (fitted.nodes, fitted.world_size) == (1, 2)
    assert fitted.note == "4 nodes asked for, 1 taken: this machine"


def test_slurm_takes_what_the_site_has_whatever_this_machine_has():
    resources = resources_of(ClusterConfig(executor="slurm", nodes=4, gpus_per_node=8), 0)
    assert (resources.device, resources.world_size, resources.note) == ("cuda", 32, "")


def test_cpu_ranks_are_as_many_as_asked():
    cluster = ClusterConfig(executor="slurm", nodes=2, ranks_per_node=3, device="cpu")
    assert resources_of(cluster, 8).world_size == 6


@pytest.mark.parametrize(
    ("cluster", "gpus", "expected"),
    [
        (ClusterConfig(device="cuda"), 0, "this machine shows none"),
        (ClusterConfig(executor="slurm", device="cuda"), 8, "gpus_per_node is not set"),
        (ClusterConfig(ranks_per_node=4), 2, "4 ranks need as many GPUs, a node has 2"),
    ],
)
def test_what_cannot_be_is_refused(cluster, gpus, expected):
    with pytest.raises(ConfigError, match=expected):
        resources_of(cluster, gpus)


def test_started_processes_are_taken_as_they_are():
    world = World(rank=5, size=8, local_rank=1, local_size=4)
    resources = resources_of_world(world, ClusterConfig(nodes=7), 4)
    assert (resources.device, resources.nodes, resources.ranks_per_node) == ("cuda", 2, 4)
    assert resources_of_world(world, ClusterConfig(), 0).device == "cpu"
    for device in ("cuda", "auto"):  # a rank that quietly took the CPU would cost days
        with pytest.raises(ConfigError, match="needs a GPU for each of the 4 ranks"):
            resources_of_world(world, ClusterConfig(device=device), 2)
    assert resources_of_world(world, ClusterConfig(device="cpu"), 2).device == "cpu"


def test_visible_devices_limit_the_count(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert gpus_here() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_here() == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")  # Slurm, in a job without GPUs
    assert gpus_here() == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpus_here() == 0
