"""A private Slurm cluster of two nodes on this machine, gone with the tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from private_cluster import PrivateCluster, missing_program


@pytest.fixture(scope="session")
def slurm_is_installed() -> None:
    missing = missing_program()
    if missing is not None:
        pytest.skip(f"{missing} is not on PATH (Debian: apt-get install slurm-wlm)")


@pytest.fixture(scope="session")
def cluster(
    slurm_is_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrivateCluster]:
    """The running cluster; SLURM_CONF points at it while tests use it."""
    cluster = PrivateCluster(tmp_path_factory.mktemp("slurm"), 2)
    with cluster.running():
        yield cluster


@pytest.fixture(scope="session")
def slurm(cluster: PrivateCluster) -> Path:
    """Path of the running cluster's slurm.conf."""
    return cluster.conf
