"""What is tried: micro-batch, activation checkpointing and settings of the engine. No torch."""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pretrain.config.schema import RunConfig
from pretrain.models.variants import STAGES, Shape
from pretrain.plan.derive import micro_batch_sizes, split_batch
from pretrain.plan.tuned import CHECKPOINTING, CHOICES, MICRO_BATCH, OF_GPUS, typed_as, value_of

CHECKPOINTING_TRIED = (
    ("none",) * STAGES,
    ("full", "none", "none", "none"),
    ("selective_mlp",) * STAGES,
    ("full",) * STAGES,
    ("full_offload",) * STAGES,
)
"""The first stage has the largest maps; attention alone frees little for its time."""
RECOMPUTED = {
    "none": 0,
    "selective_attention": 4,  # of queries, keys and values, 3C², and attention itself
    "selective_mlp": 4,  # the wider product of two, 4C² of a block's 12C²
    "full": 12,
    "full_offload": 13,  # and what crosses the bus
}
"""Products that a block computes again, in units of C², about: enough to put kinds in order."""
SIZES_APART = 1.4
"""Least ratio of neighbouring micro-batches: nearer ones differ by less than they vary."""


@dataclass(frozen=True)
class Candidate:
    """One way to compute the same step.

    Attributes:
        micro_batch: images of one forward pass.
        checkpointing: what each stage computes again.
        choices: value of every field of `CHOICES`, as JSON, in that order.
    """

    micro_batch: int
    checkpointing: tuple[str, ...]
    choices: tuple[tuple[str, str], ...]

    @property
    def overrides(self) -> list[str]:
        """What to type for it."""
        return typed_as(self.values)

    @cached_property
    def values(self) -> dict[str, Any]:
        """Every field that is tuned, as it stands in a config's JSON."""
        choices = {field: json.loads(text) for field, text in self.choices}
        return {MICRO_BATCH: self.micro_batch, CHECKPOINTING: list(self.checkpointing), **choices}

    def choosing(self, field: str, value: object) -> "Candidate":
        """The same with another value of one field of `CHOICES`."""
        return replace(
            self, choices=tuple((dict(self.choices) | {field: json.dumps(value)}).items())
        )

    def label(self, own: "Candidate") -> str:
        """What the table calls it: how it differs from what the config says."""
        others = {
            field: value
            for field, value in self.values.items()
            if field != MICRO_BATCH and value != own.values[field]
        }
        said = [item.rpartition(".")[2].replace("=", " ") for item in typed_as(others)]
        return ", ".join([f"micro-batch {self.micro_batch}", *said])

    def differences(self, own: "Candidate") -> int:
        """How many fields differ from what the config says."""
        return sum(value != own.values[field] for field, value in self.values.items())


@dataclass(frozen=True)
class Space:
    """What may be tried.

    Attributes:
        own: what the config says, on the ranks that are planned.
        sizes: micro-batches that divide, sorted, the config's among them.
        checkpointing: kinds, those that compute least again first, the config's among them.
        choices: other values of fields.
    """

    own: Candidate
    sizes: tuple[int, ...]
    checkpointing: tuple[tuple[str, ...], ...]
    choices: dict[str, tuple[Any, ...]]


def space_of(
    config: RunConfig, shape: Shape, world_size: int, typed: Collection[str], device: str
) -> Space:
    """Say what may be tried for a config.

    Args:
        config: the run.
        shape: of what it trains.
        world_size: ranks that are planned: with them the global batch must divide.
        typed: fields that a person has settled and that stay as they are.
        device: ``cuda`` or ``cpu``.

    Raises:
        ConfigError: the global batch does not divide into that many ranks.
    """
    micro_batch, _ = split_batch(config, world_size)
    settled = {*typed, *(OF_GPUS if device == "cpu" else ())}
    choices = tuple((field, json.dumps(value_of(config, field))) for field in CHOICES)
    kept = tuple(config.engine.activation_checkpointing)
    own = Candidate(micro_batch, kept, choices)
    sizes = [micro_batch]
    if MICRO_BATCH not in typed:
        sizes = _apart(micro_batch_sizes(config, world_size), micro_batch)
    kinds = {kept}
    if CHECKPOINTING not in typed:
        kinds |= set(CHECKPOINTING_TRIED)
    ordered = sorted(kinds, key=lambda kind: _recomputed(shape, kind))
    return Space(
        own=own,
        sizes=tuple(sizes),
        checkpointing=tuple(ordered),
        choices={field: values for field, values in CHOICES.items() if field not in settled},
    )


def _recomputed(shape: Shape, checkpointing: tuple[str, ...]) -> int:
    """How much is computed again: products of all blocks, which cost alike in every stage."""
    return sum(
        depth * RECOMPUTED[kind] for depth, kind in zip(shape.depths, checkpointing, strict=True)
    )


def _apart(sizes: list[int], own: int) -> list[int]:
    """Leave out sizes that are too near to a smaller one, and never the config's own."""
    kept = [own]
    for size in sorted(size for size in sizes if size > own):
        if size >= kept[-1] * SIZES_APART:
            kept.append(size)
    for size in sorted((size for size in sizes if size < own), reverse=True):
        if size * SIZES_APART <= kept[0]:
            kept.insert(0, size)
    return kept
