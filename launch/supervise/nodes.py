"""Nodes that a run no longer takes: a list in its directory, kept over all its jobs."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.files import append_line, read_json
from pretrain.run_directory import RunDirectory


@dataclass(frozen=True)
class ExcludedNode:
    """A node, why it is not taken any more, and since when (unix seconds)."""

    node: str
    why: str
    time: float


def excluded(run: RunDirectory) -> list[ExcludedNode]:
    """The nodes that a run does not take, the oldest first; damaged lines are passed over.

    To take one again, delete its line from the file (`RunDirectory.excluded_nodes_path`).
    """
    try:
        text = run.excluded_nodes_path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found: dict[str, ExcludedNode] = {}
    for line in text.splitlines():
        try:
            record = json.loads(line)
            node = ExcludedNode(str(record["node"]), str(record["why"]), float(record["time"]))
        except (ValueError, TypeError, KeyError):
            continue
        found.setdefault(node.node, node)
    return list(found.values())


def excluded_nodes(run: RunDirectory) -> list[str]:
    """The names alone, for ``sbatch --exclude``."""
    return [item.node for item in excluded(run)]


def exclude_nodes(run: RunDirectory, nodes: Sequence[str], why: str) -> None:
    """Add nodes to the list."""
    known = set(excluded_nodes(run))
    for node in nodes:
        if node not in known:
            record = {"node": node, "why": why, "time": round(time.time(), 3)}
            append_line(run.excluded_nodes_path, record)


@dataclass(frozen=True)
class BadRank:
    """A rank whose node the ranks themselves named as unfit."""

    rank: int
    node: str
    why: str


def bad_ranks(run: RunDirectory, number: int) -> list[BadRank]:
    """What the ranks of an attempt named, in their order; nothing where they named none."""
    content = read_json(run.bad_ranks_path(number)) or {}
    try:
        return [
            BadRank(int(item["rank"]), str(item["node"]), str(item["why"]))
            for item in content.get("bad_ranks", ())
        ]
    except (ValueError, TypeError, KeyError):
        return []


def excludable(job_nodes: int, listed: int, usable: int | None) -> int:
    """How many more nodes may be excluded, not more than half of the job's over the run's life.

    Args:
        job_nodes: nodes that the job needs.
        listed: nodes excluded by this list.
        usable: nodes of the partition that are not excluded yet; None where that is not known.
    """
    by_half = max(1, job_nodes // 2) - listed
    spare = by_half if usable is None else usable - job_nodes
    return max(0, min(by_half, spare))
