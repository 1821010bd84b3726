"""What the ranks of a step send to each other, as DeepSpeed does it with our config. No torch.

Counted on gloo ranks, collective by collective (``tests/dist/test_traffic_ranks.py``), as it is not
what ZeRO's paper (arXiv 1910.02054, section 7) says of the stages: stages 1 and 2 all-reduce the
gradients, where reducing and scattering them would do; stage 2 does so after each micro-batch; and
stage 3 gathers weights once per micro-batch instead of twice, as they stay from the forward pass to
the backward pass (up to half of ``stage3_max_reuse_distance``, 5e8 parameters; a larger network
sends more).
"""

from dataclasses import dataclass
from typing import Literal

from pretrain.config.engine import EngineConfig

FP32_BYTES = 4
_BYTES = {"fp32": FP32_BYTES, "bf16": 2}
Kind = Literal["all_reduce", "reduce_scatter", "all_gather"]
TIMES_SENT: dict[Kind, int] = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1}
"""How often the ring algorithms send every byte but those of a rank's own part (Patarasuk and Yuan,
2009): reducing all is reducing and scattering, then gathering."""


@dataclass(frozen=True)
class Payload:
    """One kind of collective in one step.

    Attributes:
        kind: what the ranks do.
        what: ``gradients`` or ``weights``.
        times: how often in a step, over all of them.
        elements: of all of them.
        element_bytes: of each.
        overlaps: whether the ranks compute meanwhile.
    """

    kind: Kind
    what: Literal["gradients", "weights"]
    times: int
    elements: int
    element_bytes: int
    overlaps: bool

    @property
    def size_bytes(self) -> int:
        """Of all of them once, whole."""
        return self.elements * self.element_bytes

    def sent_bytes(self, ranks: int) -> float:
        """Bytes that each of so many ranks sends in a step, and receives; 0 for one rank."""
        return TIMES_SENT[self.kind] * self.times * self.size_bytes * (ranks - 1) / ranks


def payloads_of(engine: EngineConfig, parameters: int, accumulation: int) -> tuple[Payload, ...]:
    """List the collectives of a step over gradients and weights; the rest is a few numbers.

    ``engine.reduce_dtype`` decides in which type gradients go, and in stage 3 weights too; those of
    norms, biases and tables (1 % of a Swin-L) are always fp32, and counted as the others.

    Args:
        engine: ZeRO stage and reduction type.
        parameters: of the model.
        accumulation: micro-batches of a step.
    """
    reduced = _BYTES[engine.reduce_dtype]
    if engine.zero_stage == 3:
        return (
            Payload("all_gather", "weights", accumulation, parameters, reduced, overlaps=True),
            Payload("reduce_scatter", "gradients", accumulation, parameters, reduced, True),
        )
    times = accumulation if engine.zero_stage == 2 else 1
    return (
        Payload("all_reduce", "gradients", times, parameters, reduced, overlaps=False),
        Payload("all_gather", "weights", 1, parameters, FP32_BYTES, overlaps=False),
    )
