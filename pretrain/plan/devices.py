"""What known GPUs can do at most, as their makers publish it. No torch."""

import re
from typing import Literal, NamedTuple

Precision = Literal["bf16", "fp16", "fp32"]
TRAINING_FLOP_PER_FORWARD_MAC = 6
"""Two operations per multiply-accumulate; the backward pass costs twice the forward pass. What
activation checkpointing computes again is not counted."""


class Peak(NamedTuple):
    """TFLOP/s of dense products that add up in fp32, without structured sparsity.

    Attributes:
        pattern: of the device's name as torch gives it, up to its end or a break between words.
        bf16: of the tensor cores; None where they do not know it.
        fp16: of the tensor cores.
        fp32: of the plain units: training in fp32 does without TF32.
    """

    pattern: str
    bf16: float | None
    fp16: float
    fp32: float


PEAKS = (
    Peak("Tesla V100-PCIE", None, 112, 14),  # NVIDIA V100 datasheet, January 2020
    Peak("Tesla V100S-PCIE", None, 130, 16.4),
    Peak("Tesla V100-SXM[23]", None, 125, 15.7),
    Peak("Tesla T4", None, 65, 8.1),  # NVIDIA T4 datasheet
    Peak("NVIDIA A100", 312, 312, 19.5),  # NVIDIA A100 datasheet
    Peak("NVIDIA A30", 165, 165, 10.3),  # NVIDIA A30 datasheet
    Peak("NVIDIA A40", 149.7, 149.7, 37.4),  # NVIDIA A40 datasheet
    Peak("NVIDIA A10", 125, 125, 31.2),  # NVIDIA A10 datasheet
    Peak("NVIDIA RTX A6000", 154.8, 154.8, 38.7),  # NVIDIA Ampere GA102 white paper
    Peak("NVIDIA GeForce RTX 3090", 71, 71, 35.6),
    Peak("NVIDIA L4", 121, 121, 30.3),  # NVIDIA L4 datasheet: half of what it gives with sparsity
    Peak("NVIDIA L40", 181.05, 181.05, 90.5),  # NVIDIA L40 datasheet
    Peak("NVIDIA L40S", 362.05, 362.05, 91.6),  # NVIDIA L40S datasheet
    Peak("NVIDIA GeForce RTX 4090", 165.2, 165.2, 82.6),  # NVIDIA Ada white paper
    Peak("NVIDIA H100 PCIe", 756, 756, 51),  # NVIDIA H100 datasheet: half of those with sparsity
    Peak("NVIDIA H100 NVL", 835, 835, 60),
    Peak("NVIDIA H100", 989.4, 989.4, 67),  # SXM: "NVIDIA H100 80GB HBM3"
    Peak("NVIDIA GH200", 989.4, 989.4, 67),  # NVIDIA GH200 datasheet
    Peak("NVIDIA H200 NVL", 835, 835, 60),  # NVIDIA H200 datasheet
    Peak("NVIDIA H200", 989.4, 989.4, 67),
    Peak("NVIDIA B200", 2250, 2250, 75),  # NVIDIA HGX datasheet: an eighth of eight GPUs
    Peak("AMD Instinct MI250X", 191.5, 191.5, 23.95),  # AMD's datasheet: of one of its two dies
    Peak("AMD Instinct MI300X", 1307.4, 1307.4, 163.4),  # AMD's datasheet
)
"""Of the first that fits a name."""
_PART_OF_ONE = re.compile(r"\b(MIG|Laptop|Ti|SUPER|D|vGPU|Max-Q)\b")
"""Words in the names of slices and of other chips than the one without them."""


def peak_flop_per_second(name: str, precision: Precision) -> float | None:
    """The most that a device can do in dense products; None for a device that is not known.

    Args:
        name: as `torch.cuda.get_device_name` gives it.
        precision: of training.
    """
    if _PART_OF_ONE.search(name):
        return None
    for peak in PEAKS:
        if re.match(rf"{peak.pattern}(?![A-Za-z0-9])", name):
            tera = getattr(peak, precision)
            return None if tera is None else tera * 1e12
    return None


def images_per_second_at_peak(
    name: str, precision: Precision, forward_macs_per_image: int
) -> float | None:
    """How fast a device would train if it did nothing but multiply; None for an unknown one."""
    peak = peak_flop_per_second(name, precision)
    if peak is None:
        return None
    return peak / (TRAINING_FLOP_PER_FORWARD_MAC * forward_macs_per_image)
