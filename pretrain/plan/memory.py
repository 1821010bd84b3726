"""Memory of one rank by part, on the device and in the host, and how near the estimate came."""

from collections.abc import Mapping
from typing import TypedDict

from pretrain.config.schema import RunConfig
from pretrain.engine.zero_config import BUCKET_ELEMENTS, LIVE_ELEMENTS_MAX
from pretrain.models.cost import (
    activation_bytes_per_image,
    count_parameters,
    offloaded_bytes_per_image,
)
from pretrain.models.variants import Shape

_FP32_BYTES = 4
_HALF_BYTES = 2
GIB = 2**30


class Memory(TypedDict):
    """Bytes of a rank by part: on its device, and in the host for what is offloaded."""

    memory: dict[str, int]
    host_memory: dict[str, int]


def memory_bytes_per_rank(
    shape: Shape, config: RunConfig, micro_batch: int, world_size: int
) -> Memory:
    """Estimate what a rank holds at the peak of a step; no host memory without any offload."""
    return {
        "memory": _of_device(shape, config, micro_batch, world_size),
        "host_memory": _of_host(shape, config, micro_batch, world_size),
    }


def _of_device(
    shape: Shape, config: RunConfig, micro_batch: int, world_size: int
) -> dict[str, int]:
    """Estimate the parts on the device.

    ZeRO (arXiv 1910.02054, section 5) divides optimizer state by the ranks at stage 1, gradients
    too at stage 2, parameters too at stage 3. Under autocast parameters and gradients stay fp32,
    and each matrix has a 16-bit copy while it is in use (counted as if all were alive). An average
    of the weights is divided as the master weights are. DeepSpeed reduces gradients by way of one
    bucket, whatever the model's size. Stage 3 gathers parameters in the type of the reduction and
    keeps them from the forward pass to the backward pass, up to a bound.
    """
    engine = config.engine
    count = count_parameters(shape)
    share = -(-count // world_size)
    stage = engine.zero_stage
    parts = {"gradients": _FP32_BYTES * (share if stage >= 2 else count)}
    if engine.offload != "optimizer_and_parameters":
        parts = {"parameters": _FP32_BYTES * (share if stage >= 3 else count), **parts}
    if engine.offload == "none":
        parts |= _state(config, share)
    if stage == 3:
        gathered_bytes = _HALF_BYTES if engine.reduce_dtype == "bf16" else _FP32_BYTES
        parts["gathered parameters"] = gathered_bytes * min(count, LIVE_ELEMENTS_MAX)
    parts["reduction bucket"] = _FP32_BYTES * BUCKET_ELEMENTS
    if engine.precision != "fp32":
        parts["autocast copies"] = _HALF_BYTES * count
    parts["activations"] = micro_batch * activation_bytes_per_image(
        shape, engine.precision, engine.activation_checkpointing
    )
    return parts


def _of_host(shape: Shape, config: RunConfig, micro_batch: int, world_size: int) -> dict[str, int]:
    """Estimate the parts that the host's memory keeps for the device.

    ZeRO-Offload (arXiv 2101.06840, section 4) keeps a rank's share of gradients beside the state.
    """
    engine = config.engine
    share = -(-count_parameters(shape) // world_size)
    parts: dict[str, int] = {}
    if engine.offload != "none":
        parts = {**_state(config, share), "gradients": _FP32_BYTES * share}
    if engine.offload == "optimizer_and_parameters":
        parts["parameters"] = _FP32_BYTES * share
    kept = offloaded_bytes_per_image(shape, engine.activation_checkpointing)
    if kept:
        parts["activations"] = micro_batch * kept
    return parts


def _state(config: RunConfig, share: int) -> dict[str, int]:
    parts = {"master weights": _FP32_BYTES * share, "moments": 2 * _FP32_BYTES * share}
    if config.ema.decay is not None:
        parts["average of weights"] = _FP32_BYTES * share
    return parts


def compare_with_peak(estimate: Mapping[str, int], peak_gib: float) -> dict[str, float]:
    """Hold the estimate against the peak that was measured.

    Args:
        estimate: of `memory_bytes_per_rank`, on the device.
        peak_gib: the largest of the ranks' peaks.

    Returns:
        Both in GiB, and how much more was used than estimated, as a fraction of the estimate.
    """
    estimated_gib = sum(estimate.values()) / GIB
    return {
        "estimated_gib": round(estimated_gib, 3),
        "peak_gib": round(peak_gib, 3),
        "gap_fraction": round(peak_gib / estimated_gib - 1, 3),
    }
