"""The learning rate as a pure function of the step: nothing to save, nothing to replay."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal


def learning_rate(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    peak: float,
    start: float,
    floor: float,
    kind: Literal["cosine", "linear", "constant", "multistep"],
    decay_spans_warmup: bool = False,
    milestones: Sequence[int] = (),
    milestone_factor: float = 0.1,
) -> float:
    """Return the learning rate applied in a step.

    Linear from ``start`` in step 0 to ``peak`` in step ``warmup_steps``; then, over the remaining
    ``total_steps - warmup_steps`` steps, from ``peak`` towards ``floor``, which would be reached in
    step ``total_steps``. This is the published Swin recipe: the warm-up counts inside the epochs
    and the cosine (SGDR, arXiv 1608.03983, equation 5, one cycle) starts after it. ``multistep``
    (SimMIM's, arXiv 2111.09886) stays at ``peak`` and falls at once in each milestone.

    Args:
        step: 0-based index of the optimizer step; beyond the last step the end value stays.
        total_steps: length of the run, warm-up included.
        warmup_steps: steps of the linear warm-up, less than ``total_steps``.
        peak: learning rate after the warm-up.
        start: learning rate of step 0 where there is a warm-up.
        floor: learning rate at the end; ``constant`` and ``multistep`` ignore it.
        kind: shape after the warm-up.
        decay_spans_warmup: count the decay from step 0 over all ``total_steps``, under the warm-up,
            so that it joins below the peak (the official repository until October 2022).
        milestones: rising steps from which on ``multistep`` multiplies the rate once more.
        milestone_factor: what it is multiplied by.

    Raises:
        ValueError: a negative step, or a warm-up that leaves nothing to train.
    """
    if step < 0 or not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"learning_rate: expected step >= 0 and 0 <= warmup_steps < total_steps, "
            f"got step {step}, warmup_steps {warmup_steps}, total_steps {total_steps}"
        )
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    first = 0 if decay_spans_warmup else warmup_steps
    progress = min(1.0, (step - first) / (total_steps - first))
    if kind == "constant":
        return peak
    if kind == "multistep":
        return peak * milestone_factor ** bisect_right(milestones, step)
    if kind == "linear":
        return peak + (floor - peak) * progress
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
