"""The cores that are a rank's own."""

import pytest

from pretrain.job import share_of_cores
from pretrain.world import World

NODE = World(rank=3, size=16, local_rank=3, local_size=8)
STEP = {"SLURM_STEP_NUM_TASKS": "16"}


@pytest.mark.parametrize(
    ("cores", "environment", "share"),
    [
        (64, {}, 8),  # torchrun: all ranks of the node see all cores
        (4, {}, 1),
        (12, {**STEP, "SLURM_CPUS_PER_TASK": "12"}, 12),  # bound to its own: not divided again
        (96, {**STEP, "SLURM_CPUS_PER_TASK": "12"}, 12),  # not bound
        (8, {**STEP, "SLURM_CPUS_PER_TASK": "12"}, 8),
        (64, STEP, 8),
        (64, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_CPUS_PER_TASK": "64"}, 8),  # srun --pty bash
    ],
)
def test_a_ranks_share(cores: int, environment: dict[str, str], share: int) -> None:
    assert share_of_cores(cores, NODE, environment) == share
