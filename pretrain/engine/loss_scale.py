"""The dynamic loss scale of fp16 training. No torch: the engine multiplies and divides."""

GROWTH = 2.0
BACKOFF = 0.5


class LossScale:
    """Keeps small gradients above fp16's underflow, and large ones below its overflow.

    The rule of ``torch.amp.GradScaler`` (Micikevicius et al., arXiv 1710.03740, section 3.2): a
    step that is not finite halves the scale and is skipped; ``growth_steps`` finite ones in a row
    double it. DeepSpeed's own is not used: under autocast it steps one scaler once per parameter
    group, and measures and clips the norm of the scaled gradient.

    Args:
        initial: factor on the loss of the first step.
        growth_steps: finite steps in a row after which it doubles.

    Attributes:
        scale: factor on the loss of the next step.
        good_steps: finite steps since it last changed.
    """

    def __init__(self, initial: float, growth_steps: int) -> None:
        self.scale = initial
        self.good_steps = 0
        self._growth_steps = growth_steps

    def update(self, applied: bool) -> None:
        """Count a step, which was applied or skipped."""
        if not applied:
            self.scale *= BACKOFF
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps == self._growth_steps:
            self.scale *= GROWTH
            self.good_steps = 0
