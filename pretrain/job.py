"""What one process is to do, before torch does anything: a value."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.config.schema import RunConfig
from pretrain.data.manifest import Manifest
from pretrain.evaluate.probe import Probe
from pretrain.files import read_json
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
        return self.config.engine.threads_per_rank or share_of_cores(cores, self.world, os.environ)

    @property
    def data_fingerprint(self) -> str:
        """Digest of what is trained on; a run whose data changed must not go on unnoticed."""
        return self.manifest.fingerprint(self.config.data.train_split)

    def facts(self) -> dict[str, Any]:
        """What tells this run from others beside its config: code, plan, classes and data.

        The code is that which the launcher copied, and nothing where it was started without one.
        """
        environment = read_json(self.run.environment_path) or {}
        code = ("git_commit", "git_changed_files", "code_sha256")
        return {
            "code": {name: environment.get(name) for name in code},
            "plan": json.loads(self.plan.to_json()),
            "class_order": {
                "sha256": self.manifest.class_order_sha256,
                "length": len(self.manifest.classes),
            },
            "data_identity": {
                "fingerprint": self.data_fingerprint,
                "edition": self.manifest.edition,
            },
        }


def share_of_cores(cores: int, world: World, environment: Mapping[str, str]) -> int:
    """How many of the cores that a rank may run on are its own, at least one.

    Args:
        cores: that this process may run on.
        world: its place.
        environment: in which ``srun`` says how many cores each task it started was given; Slurm
            binds them to those, or not, as the site has it.
    """
    by_srun = environment.get("SLURM_STEP_NUM_TASKS") == str(world.size)
    own = environment.get("SLURM_CPUS_PER_TASK", "")
    if by_srun and own.isdigit():
        return max(1, min(cores, int(own)))
    return max(1, cores // world.local_size)
