"""The sections on how a step is computed: the optimizer and the engine. No torch."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pretrain.config.section import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)


def _refusing(reasons: Mapping[str | int, str]) -> BeforeValidator:
    """Answer values that one might expect to work with the reason why they are not offered."""

    def check(value: object) -> object:
        if isinstance(value, str | int) and value in reasons:
            raise ValueError(reasons[value])
        return value

    return BeforeValidator(check)


def _for_every_stage(value: object) -> object:
    """Take one word for all stages, and any list as the tuple that it is in a config."""
    if isinstance(value, str):
        return (value, value, value, value)
    return tuple(value) if isinstance(value, list) else value


ZeroStage = Annotated[
    Literal[1, 2, 3],
    _refusing(
        {0: "stage 0 applies steps that are not finite; stage 1 works at any number of ranks"}
    ),
]
Offload = Annotated[
    Literal["none", "optimizer", "optimizer_and_parameters"],
    _refusing(
        {
            "nvme": "what DeepSpeed keeps on NVMe does not resume exactly; give 'optimizer', which "
            "keeps it in the host's memory",
            "parameters": "parameters are offloaded together with the optimizer; give "
            "'optimizer_and_parameters' (ZeRO stage 3)",
        }
    ),
]
Recompute = Annotated[
    Literal["none", "selective_attention", "selective_mlp", "full", "full_offload"],
    _refusing(
        {
            "cpu_checkpointing": "DeepSpeed's own does not survive autocast; give 'full_offload'",
            "selective": "which part? give 'selective_attention' or 'selective_mlp'",
        }
    ),
]
OptimizerKind = Annotated[
    Literal["adamw", "lamb"],
    _refusing(
        {"fused_lamb": "its trust ratios are wrong on ZeRO's flat shards; give 'lamb', our own"}
    ),
]


class OptimConfig(Section):
    """The optimizer and what surrounds it."""

    kind: OptimizerKind = "adamw"
    """adamw; or lamb for batches of many thousands (arXiv 1904.00962): AdamW's update of each
    decayed parameter, rescaled to the parameter's own norm. Its paper takes eps 1e-6."""
    implementation: Literal["torch", "deepspeed_cpu", "apex"] = "torch"
    """Who computes AdamW: torch (fused), DeepSpeed's CPU Adam (with ``engine.offload``; compiled at
    the first start), or NVIDIA apex's FusedAdam. LAMB is our own, in torch."""
    lr: PositiveFloat
    """Peak learning rate, as applied at ``lr_reference_batch`` (or at any batch, when null)."""
    lr_reference_batch: PositiveInt | None = None
    """Linear scaling rule: peak, warm-up start and floor are multiplied by global batch over this;
    null applies no rule."""
    weight_decay: NonNegativeFloat = 0.05
    """Decoupled weight decay of matrices; norms, biases and position tables have none."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor on the learning rate from each layer of the model to the one below it; the head has
    the full rate. 1 is the same rate everywhere."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """The moments' decay rates."""
    eps: PositiveFloat = 1e-8
    """The denominator's offset."""
    clip_grad_norm: NonNegativeFloat = 5.0
    """Global gradient norm above which gradients are scaled down; 0 does not clip."""

    @model_validator(mode="after")
    def check_implementation(self) -> Self:
        """Refuse LAMBs whose trust ratios would be wrong."""
        if self.kind == "lamb" and self.implementation != "torch":
            reason = (
                "apex's FusedLAMB takes one trust ratio for a whole flat shard of ZeRO's"
                if self.implementation == "apex"
                else "DeepSpeed's CPU Adam is no LAMB"
            )
            raise ValueError(f"implementation: lamb needs 'torch': {reason}")
        return self


class EngineConfig(Section):
    """How the step is computed; none of it changes what is learnt."""

    zero_stage: ZeroStage = 1
    """DeepSpeed ZeRO stage (0 mishandles non-finite steps and is not offered)."""
    offload: Offload = "none"
    """What lives in the host's memory: nothing, the optimizer's state and master weights, or under
    stage 3 the parameters too."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """bf16: autocast over fp32 master weights; fp16: the same with a dynamic loss scale, for GPUs
    without bf16; fp32: everything in fp32."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which gradients are summed over ranks."""
    loss_scale_init: PositiveFloat = 65536.0
    """fp16: factor on the loss at the start; halved by every step that is not finite."""
    loss_scale_growth_steps: PositiveInt = 2000
    """fp16: finite steps in a row after which the factor doubles."""
    activation_checkpointing: Annotated[
        tuple[Recompute, Recompute, Recompute, Recompute], BeforeValidator(_for_every_stage)
    ] = ("none", "none", "none", "none")
    """What the backward pass computes again, one for each stage of the model or one for all:
    nothing, each block's attention, each block's MLP, whole blocks; full_offload keeps the blocks'
    inputs in the host's memory."""
    compile: bool = False
    """``torch.compile`` each block (stages 1 and 2); needs a compiler and a minute at start."""
    attention: Literal["auto", "plain", "fused"] = "auto"
    """plain: torch's, on windows cut out of the maps; fused: a Triton kernel on the maps
    themselves, forward and backward; auto: fused in 16 bits on GPUs that run it."""
    layer_norm: Literal["auto", "torch", "apex", "fused"] = "auto"
    """Whose LayerNorm: torch's, NVIDIA apex's FusedLayerNorm, or one kernel with the residual sum
    and drop path (stages 1 and 2); auto: fused like the attention, but torch's where blocks are
    compiled, which joins them too."""
    cross_entropy: Literal["auto", "plain", "fused"] = "auto"
    """plain: torch's; fused: a kernel that never writes the chances of all classes; auto: fused
    like the attention."""
    overlap_augmentation: bool = True
    """Copy and augment the next micro-batch while the present one is computed: on a GPU in a stream
    of its own, which holds one more micro-batch in its memory. No bit of training changes."""
    collective_timeout_seconds: PositiveInt = 1800
    """Longest wait for another rank before the run fails."""
    threads_per_rank: PositiveInt | None = None
    """CPU threads of each rank's tensor operations; null shares the cores among the ranks."""

    @model_validator(mode="after")
    def check_precision(self) -> Self:
        """Refuse a reduction coarser than the gradients."""
        if self.reduce_dtype == "bf16" and self.precision != "bf16":
            raise ValueError(
                f"reduce_dtype: bf16 needs precision: bf16, got precision: {self.precision}"
            )
        return self

    @model_validator(mode="after")
    def check_stage(self) -> Self:
        """Refuse what DeepSpeed cannot do, or only badly, in this ZeRO stage."""
        if self.offload == "optimizer_and_parameters" and self.zero_stage != 3:
            raise ValueError(
                "offload: optimizer_and_parameters needs zero_stage: 3, which alone divides "
                f"parameters; got zero_stage: {self.zero_stage}"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile: needs zero_stage: 1 or 2; under 3 every gathering of a parameter breaks "
                "the graph, which is slower than no compiling"
            )
        if self.layer_norm == "fused" and self.zero_stage == 3:
            raise ValueError(
                "layer_norm: fused needs zero_stage: 1 or 2; under 3 a norm's parameters are there "
                "only while the norm itself runs"
            )
        return self


def check_together(optim: OptimConfig, engine: EngineConfig) -> None:
    """Refuse an optimizer that does not work where the engine keeps its state.

    Raises:
        ValueError: with the reason.
    """
    offloads = engine.offload != "none"
    if optim.implementation == "deepspeed_cpu" and not offloads:
        raise ValueError(
            "optim.implementation: deepspeed_cpu works on the host's memory; give "
            "engine.offload=optimizer, or optim.implementation=torch"
        )
    if optim.implementation == "apex" and offloads:
        raise ValueError(
            "optim.implementation: apex's FusedAdam works on the GPU's memory; give "
            "engine.offload=none, or optim.implementation=torch or deepspeed_cpu"
        )
