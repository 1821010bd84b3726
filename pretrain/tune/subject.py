"""What is tuned: a config, the machines it is planned for, the device at hand. No torch."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.load import expand_chain, load_run
from pretrain.config.schema import RunConfig
from pretrain.errors import ConfigError
from pretrain.models.variants import Shape, check_image_size, masked_shape, shape_of
from pretrain.plan.resources import gpus_here, resources_of
from pretrain.plan.tuned import Settled, fields_in, tuned_path, values_of
from pretrain.tune.candidates import Space, space_of
from pretrain.tune.child import Order, carry_out

DESCRIBE_SECONDS = 300
"""Longest wait for the device's name: the first import of torch may be from a slow disk."""


@dataclass(frozen=True)
class Subject:
    """One tuning.

    Attributes:
        name: of the config.
        config: the run.
        untyped: what the config says of the tuned fields by itself.
        shape: of what is trained.
        space: what may be tried.
        kind: ``cuda`` or ``cpu``.
        ranks_per_node: of the runs.
        world_size: of the runs.
        device: name of the device here.
        memory_bytes: that a rank has on it.
        run_images: that a rank sees in the run, about; infinite where the config does not say.
    """

    name: str
    config: RunConfig
    untyped: Settled
    shape: Shape
    space: Space
    kind: str
    ranks_per_node: int
    world_size: int
    device: str
    memory_bytes: int
    run_images: float

    @property
    def path(self) -> Path:
        """The file that the result goes to."""
        return tuned_path(self.config.runs_dir, self.name, self.device)


def subject_of(
    name: str, overrides: Sequence[str], cluster: str | None, ranks: int | None
) -> Subject:
    """Load the config and look at the device.

    Args:
        name: of the config, as `load_run` takes it.
        overrides: what is typed.
        cluster: as `load_run` takes it.
        ranks: of the runs; None takes what the plan takes.

    Raises:
        PretrainError: no such config, or there is no such device here.
    """
    if len(parts := expand_chain([name])) > 1:
        raise ConfigError(f"--config {name}: a chain of {', '.join(parts)}; tune one of them")
    if ranks is not None and ranks < 1:
        raise ConfigError(f"--ranks: expected 1 or more, got {ranks}")
    config = load_run(name, overrides, cluster=cluster)
    typed = fields_in(overrides)
    others = [item for item in overrides if not fields_in([item])]
    resources = resources_of(config.cluster, gpus_here())
    if resources.device == "cuda" and not gpus_here():
        raise ConfigError(
            "cluster.device: the runs are planned on GPUs, and this machine shows none; tune on a "
            "node that has one (srun --gres=gpu:1 python -m pretrain.tune …)"
        )
    shape = shape_of(config.model)
    check_image_size(shape)
    shape = shape if config.masking is None else masked_shape(shape)
    world_size = ranks or resources.world_size
    space = space_of(config, shape, world_size, typed, resources.device)
    order = Order(resources.device, resources.ranks_per_node, os.getpid())
    answer = carry_out(order, DESCRIBE_SECONDS)
    if answer.found is None:
        why = answer.failure.reason if answer.failure else ""
        raise ConfigError(f"cluster.device: {resources.device} does not work here: {why}")
    return Subject(
        name=config.name,
        config=config,
        untyped=values_of(load_run(name, others, cluster=cluster)),
        shape=shape,
        space=space,
        kind=resources.device,
        ranks_per_node=resources.ranks_per_node,
        world_size=world_size,
        device=answer.found["name"],
        memory_bytes=answer.found["memory_bytes"],
        run_images=(config.data.expected_train_samples or math.inf)
        * config.schedule.epochs
        / world_size,
    )
