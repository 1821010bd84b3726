"""The arithmetic of `scale`: seconds of a step on many GPUs, from nominal rates. No torch.

Every figure is a bound: links carry their nominal rate, matrix products run at one sustained rate
whatever their size, and nothing else takes time but reading and writing weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.engine.zero_config import BUCKET_ELEMENTS
from pretrain.plan.traffic import TIMES_SENT, Payload

BACKWARD_FRACTION = 2 / 3
"""Of a step's operations: the backward pass has two products for each of the forward pass."""
WEIGHT_BYTES_PER_MICRO_BATCH = 14
"""Per parameter, read or written: the fp32 weight read and its bf16 copy written (6), the gradient
added to what there is (8)."""
WEIGHT_BYTES_PER_STEP = 12
"""Per parameter: gradients copied into buckets (8), and gathered weights written (4)."""
STATE_BYTES_PER_STEP = 32
"""Per parameter of a rank's own part: gradient for the norm and the update (8), weight and two
moments read and written (24)."""


@dataclass(frozen=True)
class Links:
    """What joins the GPUs, per GPU and direction.

    Attributes:
        gpus_per_node: GPUs with fast links among them, and one adapter each to other nodes.
        inside_bytes_per_second: of a GPU to those of its node.
        between_bytes_per_second: of a GPU's own adapter to other nodes.
        latency_seconds: of one message; a collective is taken to have log2(ranks) in a row.
    """

    gpus_per_node: int
    inside_bytes_per_second: float
    between_bytes_per_second: float
    latency_seconds: float


@dataclass(frozen=True)
class Machine:
    """What a step is computed on.

    Attributes:
        flop_per_second: that one GPU sustains.
        memory_bytes_per_second: of one GPU's memory.
        links: among GPUs.
    """

    flop_per_second: float
    memory_bytes_per_second: float
    links: Links


@dataclass(frozen=True)
class StepSeconds:
    """Parts of a step, in seconds, on one of the GPUs.

    Attributes:
        computing: products of forward and backward pass.
        weights: reading and writing weights, gradients and optimizer state.
        sending: all collectives.
        exposed: of these, what nothing hides.
        exposed_if_overlapped: the same if gradients were reduced beside the backward pass that
            makes them, at any stage.
    """

    computing: float
    weights: float
    sending: float
    exposed: float
    exposed_if_overlapped: float

    @property
    def total(self) -> float:
        """Seconds from one step to the next."""
        return self.computing + self.weights + self.exposed

    @property
    def efficiency(self) -> float:
        """Computing as a fraction of the whole."""
        return self.computing / self.total


def collective_seconds(payload: Payload, gpus: int, links: Links) -> float:
    """Return what one kind of collective takes in a step.

    Hierarchical: with s GPUs in a node and N nodes, each GPU sends (s - 1)/s of the bytes inside
    its node and (N - 1)/N of its s-th part through its own adapter, once for a gather or a
    reduction that scatters, twice for an all-reduce. Both go on at a time, in chunks, so that the
    slower one counts.
    """
    if gpus == 1:
        return 0.0
    near = min(gpus, links.gpus_per_node)
    nodes = gpus / near
    carried = TIMES_SENT[payload.kind] * payload.times * payload.size_bytes
    inside = carried * (near - 1) / near / links.inside_bytes_per_second
    between = carried * (nodes - 1) / nodes / near / links.between_bytes_per_second
    calls = payload.times * math.ceil(payload.elements / BUCKET_ELEMENTS)
    hops = TIMES_SENT[payload.kind] * math.ceil(math.log2(gpus))
    return max(inside, between) + calls * hops * links.latency_seconds


def step_seconds(
    machine: Machine,
    gpus: int,
    *,
    images_per_gpu: int,
    flop_per_image: float,
    parameters: int,
    accumulation: int,
    payloads: Sequence[Payload],
) -> StepSeconds:
    """Return the parts of a step.

    Args:
        machine: one GPU and its links.
        gpus: ranks.
        images_per_gpu: of the global batch.
        flop_per_image: of forward and backward pass.
        parameters: of the model.
        accumulation: micro-batches of a step.
        payloads: collectives of a step.
    """
    computing = images_per_gpu * flop_per_image / machine.flop_per_second
    seconds = [(payload, collective_seconds(payload, gpus, machine.links)) for payload in payloads]
    hidden = sum(taken for payload, taken in seconds if payload.overlaps)
    in_the_way = sum(taken for payload, taken in seconds if not payload.overlaps)
    exposed = in_the_way + max(0.0, hidden - computing)
    hideable = sum(
        min(taken, BACKWARD_FRACTION * computing * payload.times / accumulation)
        for payload, taken in seconds
        if payload.what == "gradients" and not payload.overlaps
    )
    return StepSeconds(
        computing=computing,
        weights=weight_bytes(parameters, accumulation, gpus) / machine.memory_bytes_per_second,
        sending=hidden + in_the_way,
        exposed=exposed,
        exposed_if_overlapped=exposed - hideable,
    )


def weight_bytes(parameters: int, accumulation: int, gpus: int) -> float:
    """Bytes that a GPU reads and writes in a step for weights and what belongs to them."""
    whole = WEIGHT_BYTES_PER_MICRO_BATCH * accumulation + WEIGHT_BYTES_PER_STEP
    return parameters * (whole + STATE_BYTES_PER_STEP / gpus)


def paper_bytes_per_parameter(stage: int) -> int:
    """What ZeRO's paper has a rank send for each fp32 parameter, with one micro-batch a step.

    arXiv 1910.02054, section 7: twice the parameters in stages 1 and 2, three times in stage 3.
    """
    return {1: 8, 2: 8, 3: 12}[stage]
