"""What a run does about steps that went wrong, and about ranks that no longer move."""

from typing import Annotated

from pydantic import Field

from pretrain.config.section import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)


class GuardConfig(Section):
    """When training goes back to an earlier checkpoint and leaves out the samples in between."""

    max_skipped_steps: PositiveInt = 20
    """Steps in a row with a gradient that is not finite (they are never applied) after which
    training goes back."""
    spike_deviations: PositiveFloat | None = 12.0
    """A loss is too high when it is this many robust standard deviations (1.4826 times the median
    absolute deviation) above the median of the losses before it; null looks for no spikes."""
    spike_fraction: PositiveFloat = 0.1
    """And at least this fraction of the median above it."""
    spike_steps: PositiveInt = 16
    """Steps in a row with too high a loss that make a spike: one bad batch alone is none."""
    memory_steps: Annotated[int, Field(ge=16)] = 256
    """Losses that the median is taken of; before there are as many, nothing is a spike. And steps
    after a fault within which another one is the same trouble."""
    margin_steps: NonNegativeInt = 64
    """Steps before the fault whose samples are left out too, and that the checkpoint to go back
    to must be older by, where there is one."""
    max_rewinds: NonNegativeInt = 3
    """Times in a row that training goes back for what seems to be one trouble, each time further,
    before it stops; 0 never goes back."""
    compare_every_steps: PositiveInt = 1000
    """Steps between comparisons of the weights of all ranks, which must be equal to the bit; they
    are compared before every save, too."""


class WatchdogConfig(Section):
    """How long a rank may take over one thing; then it writes its stacks and ends."""

    start_seconds: PositiveFloat = 3600.0
    """Building the model and the engine, and reading weights."""
    data_seconds: PositiveFloat = 1200.0
    """Waiting for a batch."""
    step_seconds: PositiveFloat = 900.0
    """A training step, the compiling of the first included, and what is between two steps."""
    evaluation_seconds: PositiveFloat = 1200.0
    """A batch of an evaluation."""
    save_seconds: PositiveFloat = 3600.0
    """Waiting for a checkpoint, and the end of the run with its export."""


class HealthConfig(Section):
    """What every node must be fit for before the first step; one that is not is excluded."""

    enabled: bool = True
    """Whether ranks look at their nodes: about a second on CPUs, some on GPUs."""
    slow_factor: Annotated[float, Field(ge=1.0)] = 3.0
    """A rank is slow that takes more than this many times the median over all ranks for matrix
    products, or for copies to its device, twice in a row."""
    min_free_memory_fraction: Fraction = 0.5
    """Of a GPU's memory; what is missing somebody else uses."""
    min_free_disk_gib: NonNegativeFloat | None = None
    """Free space that the run directory must have, GiB; null is one checkpoint's."""
    min_free_tmp_gib: NonNegativeFloat = 0.1
    """At the directory for temporary files (TMPDIR), on every node."""
