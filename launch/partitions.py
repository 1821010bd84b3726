"""What this cluster has, as ``sinfo`` tells it, and whether a job fits. No torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from launch.scheduler import nodes_text
from pretrain.config.cluster import ClusterConfig
from pretrain.errors import LaunchError

_FORMAT = "%P|%a|%l|%D|%c|%m|%G|%f|%T"
_UNUSABLE = ("down", "drain", "fail", "maint", "unknown", "no_respond", "power_down")
_SILENT = "*"
"""At the end of a state: the node does not answer."""
_GRES = re.compile(r"gpu(?::[^:,()]+)?:(\d+)")


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike.

    Attributes:
        count: how many.
        cpus: cores that Slurm hands out, of each.
        memory_mib: memory of each, in MiB.
        gpus: GPUs of each.
        features: what a constraint may ask for.
        usable: whether they take jobs now.
    """

    count: int
    cpus: int
    memory_mib: int
    gpus: int
    features: frozenset[str]
    usable: bool


@dataclass(frozen=True)
class Partition:
    """A partition of this cluster.

    Attributes:
        name: as jobs name it.
        is_default: taken where a job names none.
        is_up: whether it takes jobs.
        limit_minutes: longest time limit of a job; None without one.
        nodes: in groups of equals.
    """

    name: str
    is_default: bool
    is_up: bool
    limit_minutes: int | None
    nodes: tuple[Nodes, ...]


def read_partitions() -> list[Partition]:
    """Ask Slurm for its partitions; none where it does not say.

    Raises:
        LaunchError: Slurm does not answer.
    """
    return parse_partitions(nodes_text(_FORMAT) or "")


def parse_partitions(text: str) -> list[Partition]:
    """Read what ``sinfo`` printed in the format above."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 9:
            continue
        name, up, limit, count, cpus, memory, gres, features, state = fields
        nodes = Nodes(
            count=int(count),
            cpus=int(cpus.rstrip("+")),
            memory_mib=int(memory.rstrip("+")),
            gpus=sum(int(number) for number in _GRES.findall(gres)),
            features=frozenset(features.split(",")),
            usable=not state.lower().startswith(_UNUSABLE) and not state.endswith(_SILENT),
        )
        key = name.rstrip("*")
        before = found[key].nodes if key in found else ()
        found[key] = Partition(
            key, name.endswith("*"), up == "up", minutes_of(limit), (*before, nodes)
        )
    return list(found.values())


def minutes_of(text: str) -> int | None:
    """Minutes of a time as Slurm prints it, rounded up; None where there is no limit.

    Example:
        >>> minutes_of("2-12:00:00"), minutes_of("30:00"), minutes_of("infinite")
        (3600, 30, None)
    """
    days, _, clock = text.rpartition("-")
    try:
        numbers = [int(number) for number in clock.split(":")]
        hours, minutes, seconds = [0] * (3 - len(numbers)) + numbers
        return int(days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)
    except ValueError:
        return None


def check_partition(
    cluster: ClusterConfig, ranks_per_node: int, partitions: Sequence[Partition]
) -> list[str]:
    """Refuse a job that no partition it may run in can ever take.

    Args:
        cluster: what the job asks for.
        ranks_per_node: processes of each node, where the config leaves it open.
        partitions: of this cluster; nothing is checked where it tells none.

    Returns:
        Warnings: it fits, but not now.

    Raises:
        LaunchError: with what is asked for and what there is.
    """
    if not partitions:
        return []
    refusals = []
    for partition in _meant(cluster, partitions):
        refusal, warnings = _fits(cluster, ranks_per_node, partition)
        if refusal is None:
            return warnings
        refusals.append(refusal)
    raise LaunchError("; ".join(refusals))


def _meant(cluster: ClusterConfig, partitions: Sequence[Partition]) -> list[Partition]:
    there = ", ".join(partition.name for partition in partitions)
    if cluster.partition is None:
        default = [partition for partition in partitions if partition.is_default]
        if not default:
            raise LaunchError(
                "cluster.partition: not given, and this cluster has no default; give one of "
                f"{there} (cluster.partition=NAME)"
            )
        return default
    by_name = {partition.name: partition for partition in partitions}
    asked = cluster.partition.split(",")
    for name in asked:
        if name not in by_name:
            raise LaunchError(f"cluster.partition: {name}: this cluster has {there}")
    return [by_name[name] for name in asked]


def _fits(
    cluster: ClusterConfig, ranks_per_node: int, partition: Partition
) -> tuple[str | None, list[str]]:
    """Why a job can never run in a partition, or what keeps it waiting there."""
    where = f"partition {partition.name}"
    if not partition.is_up:
        return f"cluster.partition: {where} is down", []
    limit, asked = partition.limit_minutes, cluster.time_limit_minutes
    if limit is not None and asked is not None and asked > limit:
        return f"cluster.time_limit_minutes: {asked}: {where} allows at most {limit}", []
    nodes = partition.nodes
    gpus = 0 if cluster.device == "cpu" else cluster.gpus_per_node or 0
    wanted = {
        "gpus_per_node": (gpus, lambda node: node.gpus, "GPUs"),
        "cpus_per_rank": ((cluster.cpus_per_rank or 1) * ranks_per_node, _cpus, "CPUs"),
        "memory_gib_per_node": (
            cluster.memory_gib_per_node or 0,
            lambda node: node.memory_mib / 1024,
            "GiB of memory",
        ),
    }
    for field, (amount, has, what) in wanted.items():
        most = max((has(node) for node in nodes), default=0)
        nodes = tuple(node for node in nodes if has(node) >= amount)
        if not nodes:
            return (
                f"cluster.{field}: {amount} {what} of a node are asked for, and no node of {where} "
                f"that has the rest has more than {most:g}"
            ), []
    return _enough(cluster, nodes, where)


def _enough(
    cluster: ClusterConfig, nodes: Sequence[Nodes], where: str
) -> tuple[str | None, list[str]]:
    feature = cluster.constraint
    if feature is not None and re.fullmatch(r"\w+", feature):
        named = sorted(set().union(*(node.features for node in nodes)) - {"(null)"})
        nodes = [node for node in nodes if feature in node.features]
        if not nodes:
            has = ", ".join(named) or "no features"
            return f"cluster.constraint: {feature}: no such node in {where}, which has {has}", []
    total = sum(node.count for node in nodes)
    if total < cluster.nodes:
        return f"cluster.nodes: {cluster.nodes}: {where} has {total} such nodes", []
    usable = sum(node.count for node in nodes if node.usable)
    if usable < cluster.nodes:
        return None, [f"{where}: only {usable} of {total} such nodes take jobs now"]
    return None, []


def _cpus(node: Nodes) -> int:
    return node.cpus
