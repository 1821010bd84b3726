"""What it takes to evaluate and convert finished weights. No torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pretrain.config.schema import RunConfig
from pretrain.data.manifest import Split
from pretrain.errors import ConfigError
from pretrain.models.cost import count_forward_macs
from pretrain.models.variants import shape_of
from pretrain.plan.cost import Cost, estimate_cost
from pretrain.plan.resources import Resources


@dataclass(frozen=True)
class ResultsPlan:
    """The plan of a run of results.

    Attributes:
        device: ``cuda`` or ``cpu``.
        nodes: machines, always one.
        ranks_per_node: processes that share the images.
        images: of all sets that are built.
        sets: what is evaluated on, as ``PATH, split NAME``.
        layouts: what is written.
        cost: hours, with what they assume; without those of converting.
    """

    device: str
    nodes: int
    ranks_per_node: int
    images: int
    sets: tuple[str, ...]
    layouts: tuple[str, ...]
    cost: Cost

    def to_json(self) -> str:
        """Return the plan as indented JSON, as kept in the run directory."""
        return json.dumps(asdict(self), indent=2) + "\n"


def evaluated_sets(config: RunConfig) -> list[tuple[str, str | None]]:
    """Return what a run of results evaluates on: shard sets, and their splits where that is known.

    Raises:
        ConfigError: there is nothing to evaluate on.
    """
    if config.results.evaluate:
        return [(path, None) for path in config.results.evaluate]
    if config.data.eval_split is not None:
        return [(config.data.path, config.data.eval_split)]
    if config.eval.probe is not None:
        return [(config.eval.probe.path, config.eval.probe.split)]
    raise ConfigError(
        f"results.evaluate: {config.init_from} has no held-out split and no probe; "
        "give results.evaluate=[SHARD_SET]"
    )


def make_results_plan(
    config: RunConfig, splits: Sequence[Split], resources: Resources
) -> ResultsPlan:
    """Derive the plan.

    Args:
        config: of the run of results.
        splits: of the sets it evaluates on, those that are built.
        resources: the machines.

    Raises:
        ConfigError: there is nothing to evaluate on.
    """
    sets = evaluated_sets(config)
    images = sum(split.samples for split in splits)
    macs = count_forward_macs(shape_of(config.model))
    return ResultsPlan(
        device=resources.device,
        nodes=resources.nodes,
        ranks_per_node=resources.ranks_per_node,
        images=images,
        sets=tuple(path if split is None else f"{path}, split {split}" for path, split in sets),
        layouts=config.results.convert,
        cost=estimate_cost(0, images, macs, resources),
    )
