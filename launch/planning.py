"""The runs of one command: what is asked, what follows from it, where it goes. No torch."""

from dataclasses import dataclass
from pathlib import Path

from pretrain.config.schema import RunConfig
from pretrain.plan.derive import Plan, make_plan
from pretrain.plan.measured import measured_rate
from pretrain.plan.render import render, render_results
from pretrain.plan.resources import gpus_here, resources_of
from pretrain.plan.results import ResultsPlan, make_results_plan
from pretrain.plan.take_up import tuned_rate
from pretrain.preflight import (
    free_disk_bytes,
    manifest_if_built,
    probe_split_if_built,
    result_splits_if_built,
)
from pretrain.run_directory import RunDirectory


@dataclass(frozen=True)
class Part:
    """One run of the command.

    Attributes:
        config: what is asked.
        plan: what follows from it.
        run: where it goes.
    """

    config: RunConfig
    plan: Plan | ResultsPlan
    run: RunDirectory

    def text(self) -> str:
        """The plan for a terminal."""
        if isinstance(self.plan, ResultsPlan):
            return render_results(self.config, self.plan)
        return render(self.config, self.plan)


def plan_part(config: RunConfig) -> Part:
    """Derive the plan of a run on the machines that its config asks for.

    Raises:
        PretrainError: config, data and machines do not suit each other.
    """
    resources = resources_of(config.cluster, gpus_here())
    if config.task == "results":
        results = make_results_plan(config, result_splits_if_built(config), resources)
        return Part(config, results, run_of(config))
    plan = make_plan(
        config,
        manifest_if_built(config),
        resources,
        free_disk_bytes=free_disk_bytes(config),
        probe=probe_split_if_built(config),
        measured=measured_rate(config, resources) or tuned_rate(config, resources.world_size),
    )
    return Part(config, plan, run_of(config))


def run_of(config: RunConfig) -> RunDirectory:
    """The directory of a run, which need not exist."""
    return RunDirectory(Path(config.runs_dir) / config.name)
