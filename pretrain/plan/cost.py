"""Hours of a run, from its arithmetic and a stated rate of the device."""

from dataclasses import dataclass

from pretrain.plan.devices import TRAINING_FLOP_PER_FORWARD_MAC, peak_flop_per_second
from pretrain.plan.measured import MeasuredRate
from pretrain.plan.resources import Resources
from pretrain.plan.tuned import TunedRate

ASSUMED_SHARE = 0.35
_A100 = peak_flop_per_second("NVIDIA A100", "bf16") or 0.0
ASSUMED_FLOP_PER_SECOND = {"cuda": ASSUMED_SHARE * _A100, "cpu": 15e9}
"""Sustained rate of one rank: a share of an A100's dense bf16 peak, and one CPU core."""

_ASSUMPTION = {
    "cuda": f"each GPU sustains {ASSUMED_FLOP_PER_SECOND['cuda'] / 1e12:.0f} TFLOP/s "
    f"({100 * ASSUMED_SHARE:.0f} % of an A100's dense bf16 peak); not measured",
    "cpu": "each rank sustains 15 GFLOP/s (one CPU core); not measured",
}


@dataclass(frozen=True)
class Cost:
    """What a run takes, with the assumption it rests on.

    Attributes:
        hours: wall time without queueing.
        gpu_hours: hours times GPUs; 0 on CPU.
        exaflop: floating-point operations of the whole run, in units of 1e18.
        images_per_second: training rate over all ranks.
        assumption: the sentence that must be shown beside the hours.
    """

    hours: float
    gpu_hours: float
    exaflop: float
    images_per_second: float
    assumption: str


def estimate_cost(
    train_images: int,
    eval_images: int,
    forward_macs_per_image: int,
    resources: Resources,
    measured: MeasuredRate | TunedRate | None = None,
) -> Cost:
    """Estimate the cost of training and evaluating on that many images.

    Args:
        train_images: of the whole run.
        eval_images: of all its evaluations.
        forward_macs_per_image: multiply-accumulates of one forward pass.
        resources: the machines.
        measured: the rate of an earlier run of the same work, or of its tuning; None takes a
            stated assumption.
    """
    training = TRAINING_FLOP_PER_FORWARD_MAC * forward_macs_per_image
    flop = train_images * training + eval_images * 2 * forward_macs_per_image
    rate = ASSUMED_FLOP_PER_SECOND[resources.device]
    if measured is not None:
        rate = measured.images_per_second_per_rank * training
    hours = flop / (rate * resources.world_size) / 3600
    return Cost(
        hours=hours,
        gpu_hours=hours * resources.world_size if resources.device == "cuda" else 0.0,
        exaflop=flop / 1e18,
        images_per_second=rate * resources.world_size / training,
        assumption=_ASSUMPTION[resources.device] if measured is None else measured.assumption,
    )
