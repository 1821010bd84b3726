"""The DeepSpeed config as a pure function of ours: there is no second file to disagree with."""

from typing import Any

from pretrain.config.engine import EngineConfig, OptimConfig

BUCKET_ELEMENTS = 50_000_000
"""Elements that are reduced or gathered at once: 200 MB of fp32, enough for full bandwidth."""
PERSISTENT_ELEMENTS = 10_000
"""Stage 3 keeps smaller parameters whole on every rank: Swin's norms, biases and bias tables."""
LIVE_ELEMENTS_MAX = 1_000_000_000
"""Stage 3 keeps as many elements whole at a time, if they are used again within as many others."""
AUTOCAST_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def zero_config(
    engine: EngineConfig,
    optim: OptimConfig,
    micro_batch: int,
    accumulation: int,
    *,
    pin_memory: bool,
) -> dict[str, Any]:
    """Return the dict for ``deepspeed.initialize``, every key that matters written out.

    DeepSpeed's defaults change between releases (gradient clipping became 1.0 in 2026), so none is
    relied on where it would change what is computed.

    Args:
        engine: ZeRO stage, precision, reduction type, offload.
        optim: where gradients are clipped; the optimizer itself is built by us.
        micro_batch: images of one forward pass on one rank.
        accumulation: forward passes of one optimizer step on one rank.
        pin_memory: keep what is offloaded in page-locked memory, which a GPU copies faster.
    """
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": float(optim.clip_grad_norm),  # 0.0 is off; a missing key is 1.0
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": None,
        "zero_allow_untested_optimizer": optim.kind == "lamb",  # ours, and tested
        "zero_force_ds_cpu_optimizer": False,
        "fp16": {"enabled": False},
        # DeepSpeed's own modes would start the master weights from rounded values.
        "bf16": {"enabled": False},
        "torch_autocast": {
            "enabled": engine.precision in AUTOCAST_DTYPES,
            "dtype": AUTOCAST_DTYPES.get(engine.precision, "bfloat16"),
            "lower_precision_safe_modules": _reduced_in_bf16(engine),
        },
        "zero_optimization": _zero_section(engine, pin_memory),
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        # On by default, and then it waits for the device before every pass and after every step.
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        "memory_breakdown": False,
        "dump_state": False,
    }


def skips_on_device(engine: EngineConfig, optim: OptimConfig) -> bool:
    """Whether a step that is not finite can be skipped without asking the host.

    It takes an optimizer whose kernel skips (torch's fused AdamW), gradients that are all on the
    device (ZeRO 1 and 2, nothing offloaded), and a loss scale that does not follow from what was
    skipped.
    """
    return (
        optim.kind == "adamw"
        and optim.implementation == "torch"
        and engine.zero_stage in (1, 2)
        and engine.offload == "none"
        and engine.precision != "fp16"
    )


def _reduced_in_bf16(engine: EngineConfig) -> list[str]:
    """Modules whose gradients are summed over ranks in bf16; all others are summed in fp32."""
    if engine.reduce_dtype == "bf16":
        return ["torch.nn.Linear", "torch.nn.Conv2d"]
    return []


def _zero_section(engine: EngineConfig, pin_memory: bool) -> dict[str, Any]:
    stage_3 = engine.zero_stage == 3
    section = {
        "stage": engine.zero_stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "allgather_bucket_size": BUCKET_ELEMENTS,
        "overlap_comm": stage_3,
        "round_robin_gradients": False,
        "elastic_checkpoint": False,
        "ignore_unused_parameters": True,
        # True replaces torch.nn.functional.linear in the whole process, with other rounding.
        "memory_efficient_linear": False,
    }
    if stage_3:
        section |= {
            "sub_group_size": 10**12,  # one call of the optimizer for each of its groups
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
            "stage3_max_live_parameters": LIVE_ELEMENTS_MAX,
            "stage3_max_reuse_distance": LIVE_ELEMENTS_MAX,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    if engine.offload != "none":
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": pin_memory}
    if engine.offload == "optimizer_and_parameters":
        section["offload_param"] = {"device": "cpu", "pin_memory": pin_memory}
    return section
