"""Cores that the loader of a rank needs to keep up with its device. No torch."""

import os
from dataclasses import dataclass

from pretrain.config.schema import RunConfig

IMAGES_PER_SECOND_PER_CORE = 581.0
"""Read from a disk, decoded, cropped to 224 pixels and put into a batch: the 1.72 ms of CPU time
that benchmarks/loader.md has for this loader, its copy into the rank's batch included."""
MEASURED_ON = "benchmarks/loader.md: AMD EPYC, photographs of 106 kB"
RANK_CORES = 1
"""What a rank's own thread keeps busy beside its loader processes."""


@dataclass(frozen=True)
class Loading:
    """What the loader of one rank needs, and what it gets.

    Attributes:
        images_per_second: of the rank, at the plan's rate.
        images_per_second_per_core: that one core loads.
        source: where the latter was measured, or who says it.
        workers: loader processes, each of which fills at most one core.
        cores: of the rank; None where the config leaves them to Slurm.
    """

    images_per_second: float
    images_per_second_per_core: float
    source: str
    workers: int
    cores: int | None

    @property
    def cores_needed(self) -> float:
        """Cores that the loader alone keeps busy."""
        return self.images_per_second / self.images_per_second_per_core

    @property
    def images_per_second_max(self) -> float:
        """What the loader can give with the processes and cores there are."""
        usable = float(self.workers)
        if self.cores is not None:
            usable = min(usable, self.cores - RANK_CORES)
        return usable * self.images_per_second_per_core

    @property
    def keeps_up(self) -> bool:
        """Whether the loader is as fast as the device."""
        return self.images_per_second_max >= self.images_per_second


def loading_of(config: RunConfig, images_per_second: float, ranks_per_node: int) -> Loading:
    """Return what the loaders need for that rate of a rank, and what the config gives them.

    Args:
        config: of the run.
        images_per_second: of one rank.
        ranks_per_node: among which the local executor divides this machine's cores.
    """
    stated = config.data.images_per_second_per_core
    cores = config.cluster.cpus_per_rank
    if cores is None and config.cluster.executor == "local":
        cores = len(os.sched_getaffinity(0)) // ranks_per_node
    return Loading(
        images_per_second=images_per_second,
        images_per_second_per_core=stated or IMAGES_PER_SECOND_PER_CORE,
        source=MEASURED_ON if stated is None else "data.images_per_second_per_core",
        workers=config.data.workers_per_rank,
        cores=cores,
    )
