"""The section about the learning rate over time."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pretrain.config.section import NonNegativeFloat, PositiveInt, Section


class ScheduleConfig(Section):
    """Learning rate over time, per step."""

    epochs: PositiveInt
    """Length of the run, warm-up included."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Linear warm-up at the start."""
    decay_spans_warmup: bool = False
    """The decay counts from step 0 and the warm-up lies over its start, after which the rate drops
    slightly below the peak; otherwise the decay starts at the peak, after the warm-up."""
    kind: Literal["cosine", "linear", "constant", "multistep"] = "cosine"
    """Shape after the warm-up."""
    milestone_epochs: tuple[PositiveInt, ...] = ()
    """``multistep``: epochs after which the rate is multiplied by ``milestone_factor``."""
    milestone_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """``multistep``: what is left of the rate after each milestone."""
    warmup_lr: NonNegativeFloat = 0.0
    """Learning rate of step 0, before scaling."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate of the end, before scaling; ``constant`` and ``multistep`` ignore it."""

    @model_validator(mode="after")
    def check_warmup(self) -> Self:
        """Refuse a warm-up that leaves nothing to train."""
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: expected less than epochs ({self.epochs}), "
                f"got {self.warmup_epochs:g}"
            )
        return self

    @model_validator(mode="after")
    def check_milestones(self) -> Self:
        """Refuse milestones out of order, outside the decay, or of another kind of schedule."""
        epochs = self.milestone_epochs
        if (self.kind == "multistep") != bool(epochs):
            raise ValueError(
                "milestone_epochs: expected some with kind: multistep and none otherwise, "
                f"got {list(epochs)} with kind: {self.kind}"
            )
        inside = all(self.warmup_epochs <= epoch < self.epochs for epoch in epochs)
        if not inside or list(epochs) != sorted(set(epochs)):
            raise ValueError(
                f"milestone_epochs: expected rising epochs from the end of the warm-up "
                f"({self.warmup_epochs:g}) to below epochs ({self.epochs}), got {list(epochs)}"
            )
        return self
