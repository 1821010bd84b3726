"""What one process is to do, before torch does anything: a value."""

import os
from dataclasses import dataclass

from pretrain.config.schema import RunConfig
from pretrain.data.manifest import Manifest
from pretrain.evaluate.probe import Probe
from pretrain.plan.derive import Plan
from pretrain.run_directory import RunDirectory
from pretrain.world import World


@dataclass(frozen=True)
class Job:
    """One rank's share of a run.

    Attributes:
        run: the run's directory.
        config: the run's config.
        plan: what follows from it at this world size.
        manifest: of the data.
        world: this process's place.
        attempt: number of this life of the run, from 1.
        probe: the second set that accuracy is measured on; None without one.
    """

    run: RunDirectory
    config: RunConfig
    plan: Plan
    manifest: Manifest
    world: World
    attempt: int
    probe: Probe | None = None

    @property
    def device(self) -> str:
        """Where this rank computes, in torch's notation."""
        return f"cuda:{self.world.local_rank}" if self.plan.device == "cuda" else "cpu"

    @property
    def threads(self) -> int:
        """CPU threads of this rank's tensor operations: its share of the cores, unless set."""
        cores = len(os.sched_getaffinity(0))
        return self.config.engine.threads_per_rank or max(1, cores // self.world.local_size)

    @property
    def data_fingerprint(self) -> str:
        """Digest of what is trained on; a run whose data changed must not go on unnoticed."""
        return self.manifest.fingerprint(self.config.data.train_split)
