"""The section of a config on profiling steps. No torch."""

from typing import Annotated

from pydantic import Field

from pretrain.config.section import NonNegativeInt, PositiveInt, Section


class ProfileConfig(Section):
    """Which steps of each attempt are profiled; ``python -m pretrain`` and the launcher alike."""

    steps: Annotated[int, Field(ge=0, le=50)] = 0
    """Steps that are profiled; Swin-T on a CPU leaves 0.6 MB of trace for each. 0 profiles none."""
    first_step: PositiveInt = 5
    """Steps that an attempt takes before: the first ones warm up, and with what they take without a
    profile the profiled ones are compared."""
    memory: bool = True
    """Record every allocation of these steps, too."""
    ranks: tuple[NonNegativeInt, ...] = (0,)
    """Ranks whose steps are profiled."""
    stop: bool = False
    """Save and stop when that is done; otherwise training goes on."""
