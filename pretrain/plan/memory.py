"""Memory of one rank by part, for each ZeRO stage."""

from pretrain.config.schema import EngineConfig
from pretrain.models.cost import activation_bytes_per_image, count_parameters
from pretrain.models.variants import Shape

_FP32_BYTES = 4
_BF16_BYTES = 2


def memory_bytes_per_rank(
    shape: Shape, engine: EngineConfig, micro_batch: int, world_size: int
) -> dict[str, int]:
    """Estimate what a rank holds at the peak of a step.

    ZeRO (arXiv 1910.02054, section 5) divides optimizer state by the ranks at stage 1, gradients
    too at stage 2, parameters too at stage 3. Under bf16 autocast parameters and gradients stay
    fp32, and each matrix has a bf16 copy while it is in use (counted as if all were alive).
    """
    count = count_parameters(shape)
    share = -(-count // world_size)
    stage = engine.zero_stage
    parts = {
        "parameters": _FP32_BYTES * (share if stage >= 3 else count),
        "gradients": _FP32_BYTES * (share if stage >= 2 else count),
        "master weights": _FP32_BYTES * share,
        "AdamW moments": 2 * _FP32_BYTES * share,
    }
    if engine.precision == "bf16":
        parts["autocast copies"] = _BF16_BYTES * count
    parts["activations"] = micro_batch * activation_bytes_per_image(
        shape, engine.precision, engine.activation_checkpointing
    )
    return parts
