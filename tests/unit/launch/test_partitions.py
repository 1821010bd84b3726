"""Reading ``sinfo`` and refusing what no partition has."""

import pytest

from launch.partitions import check_partition, minutes_of, parse_partitions
from pretrain.config.cluster import ClusterConfig
from pretrain.errors import LaunchError

SINFO = """\
gpu*|up|2-00:00:00|30|96|1031000|gpu:h100:8(S:0-1)|hopper,ib|mixed
gpu*|up|2-00:00:00|1|96|1031000|gpu:h100:8(S:0-1)|hopper,ib|drained
gpu*|up|2-00:00:00|1|96|1031000|gpu:h100:8(S:0-1)|hopper,ib|idle*
gpu*|up|2-00:00:00|4|64+|515000+|gpu:a100:4,gpu:a30:4|ampere|idle
cpu|up|infinite|100|128|257000|(null)|(null)|allocated
old|down|1:00:00|8|40|190000|gpu:v100:4|(null)|down*
"""
PARTITIONS = parse_partitions(SINFO)


def fits(**fields: object) -> list[str]:
    return check_partition(ClusterConfig.model_validate(fields), 8, PARTITIONS)


def test_sinfo_is_read() -> None:
    gpu, cpu, old = PARTITIONS
    assert (gpu.name, gpu.is_default, gpu.is_up, gpu.limit_minutes) == ("gpu", True, True, 2880)
    assert [(group.count, group.gpus, group.usable) for group in gpu.nodes] == [
        (30, 8, True),
        (1, 8, False),
        (1, 8, False),
        (4, 8, True),
    ]
    assert (cpu.limit_minutes, cpu.nodes[0].gpus) == (None, 0)
    assert (old.is_up, old.nodes[0].usable) == (False, False)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("15:00", 15), ("1:00:00", 60), ("2-12:00:00", 3600), ("0:30", 1), ("infinite", None)],
)
def test_times(text: str, minutes: int | None) -> None:
    assert minutes_of(text) == minutes


def test_what_fits_is_taken() -> None:
    assert fits(nodes=30, gpus_per_node=8, cpus_per_rank=12, constraint="hopper") == []
    assert fits(nodes=36, gpus_per_node=8) == [
        "partition gpu: only 34 of 36 such nodes take jobs now"
    ]
    assert fits(nodes=100, partition="cpu", device="cpu", gpus_per_node=8) == []
    # The first that can take it decides.
    assert fits(nodes=1, partition="old,gpu", gpus_per_node=8) == []
    # Only Slurm reads expressions.
    assert fits(constraint="hopper,ib", gpus_per_node=8) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"partition": "fast"}, "cluster.partition: fast: this cluster has gpu, cpu, old"),
        ({"partition": "old"}, "partition old is down"),
        ({"nodes": 37, "gpus_per_node": 8}, "cluster.nodes: 37: partition gpu has 36 such nodes"),
        ({"gpus_per_node": 16}, "cluster.gpus_per_node: 16 GPUs of a node"),
        ({"gpus_per_node": 8, "cpus_per_rank": 13}, "cluster.cpus_per_rank: 104 CPUs of a node"),
        ({"memory_gib_per_node": 2000}, "has more than 1006.84"),
        ({"time_limit_minutes": 2881}, "cluster.time_limit_minutes: 2881: partition gpu allows"),
        ({"constraint": "volta"}, "which has ampere, hopper, ib"),
        ({"partition": "old,cpu", "gpus_per_node": 1}, "partition old is down; cluster.gpus_per"),
    ],
)
def test_what_cannot_run_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(LaunchError) as caught:
        fits(**fields)
    assert message in str(caught.value)


def test_a_cluster_without_default_is_told_to() -> None:
    partitions = parse_partitions(SINFO.replace("gpu*", "gpu"))
    with pytest.raises(LaunchError, match="has no default; give one of gpu, cpu, old"):
        check_partition(ClusterConfig(), 1, partitions)
    assert check_partition(ClusterConfig(), 1, []) == []
