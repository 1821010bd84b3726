"""What a network's stages hand on: how large it is, looked at in a few steps only."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Looked:
    """What one forward pass of this rank showed, by stage.

    Attributes:
        norms: L2 norms, fp32 scalars on the device.
        maxima: largest absolute values, likewise.
        elements: how many numbers those are of.
    """

    norms: list[Tensor] = field(default_factory=list)
    maxima: list[Tensor] = field(default_factory=list)
    elements: list[int] = field(default_factory=list)


class Activations:
    """Looks at the outputs of modules while a step runs. No wait for the device, two reads of each.

    Hooks, which are there in the steps that are looked at and in no other: a compiled block is not
    compiled again for them, and a part that is computed twice is looked at once.

    Args:
        stages: modules that each return one tensor, in the order in which they are called.
    """

    def __init__(self, stages: Iterable[nn.Module]) -> None:
        self._stages = list(stages)
        self._looked: Looked | None = None

    @contextmanager
    def watched(self, sampled: bool) -> Iterator[None]:
        """Look at the first forward pass inside a ``with`` block that is to be ``sampled``."""
        if not sampled:
            yield
            return
        looked = Looked()
        hooks = [stage.register_forward_hook(self._look(looked)) for stage in self._stages]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._looked = looked

    def taken(self) -> Looked | None:
        """What was seen since the last call; None where nothing was looked at."""
        looked, self._looked = self._looked, None
        return looked

    def _look(self, looked: Looked) -> Callable[[nn.Module, Any, Tensor], None]:
        @torch.no_grad()
        def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if len(looked.norms) < len(self._stages):  # later micro-batches are not looked at
                looked.norms.append(torch.linalg.vector_norm(output))
                looked.maxima.append(torch.linalg.vector_norm(output, math.inf))
                looked.elements.append(output.numel())

        return look
