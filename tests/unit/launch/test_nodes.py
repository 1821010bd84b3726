"""The list of nodes that a run no longer takes."""

import json
from pathlib import Path

import pytest

from launch.supervise.nodes import bad_ranks, excludable, exclude_nodes, excluded, excluded_nodes
from pretrain.run_directory import RunDirectory


def test_nodes_are_kept_once_in_order_with_the_first_reason(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert excluded_nodes(run) == []
    exclude_nodes(run, ["n3", "n1"], "a wrong sum")
    with run.excluded_nodes_path.open("a") as file:
        file.write('{"node": "torn')
    exclude_nodes(run, ["n1", "n2"], "slow")
    assert excluded_nodes(run) == ["n3", "n1", "n2"]
    assert [item.why for item in excluded(run)] == ["a wrong sum", "a wrong sum", "slow"]


@pytest.mark.parametrize(
    ("nodes", "listed", "usable", "more"),
    [(1, 0, 2, 1), (1, 1, 5, 0), (2, 0, 2, 0), (2, 0, 3, 1), (8, 0, 100, 4), (8, 3, 9, 1),
     (8, 4, 100, 0), (8, 0, None, 4), (3, 0, 1, 0)],
)  # fmt: skip
def test_how_many_more_may_be_excluded(
    nodes: int, listed: int, usable: int | None, more: int
) -> None:
    assert excludable(nodes, listed, usable) == more


def test_what_the_ranks_named_is_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert bad_ranks(run, 1) == []
    path = run.bad_ranks_path(1)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"bad_ranks": [{"rank": 3, "node": "n2", "why": "slow"}]}))
    (bad,) = bad_ranks(run, 1)
    assert (bad.rank, bad.node, bad.why) == (3, "n2", "slow")
    path.write_text('{"bad_ranks": [{"rank": 3}]}')
    assert bad_ranks(run, 1) == []
