"""What the optimizer and engine sections refuse, each with its reason in one line."""

import pytest

from pretrain.config.load import load_run
from pretrain.errors import ConfigError

REFUSED = [
    (["engine.zero_stage=0"], "stage 0 applies steps that are not finite"),
    (["engine.zero_stage=4"], "input should be 1, 2 or 3, got 4"),
    (["engine.offload=nvme"], "does not resume exactly; give 'optimizer'"),
    (["engine.offload=parameters"], "give 'optimizer_and_parameters'"),
    (["engine.offload=optimizer_and_parameters"], "needs zero_stage: 3"),
    (["engine.compile=true", "engine.zero_stage=3"], "compile: needs zero_stage: 1 or 2"),
    (["engine.precision=fp16", "engine.reduce_dtype=bf16"], "bf16 needs precision: bf16"),
    (
        ["engine.activation_checkpointing=[cpu_checkpointing,none,none,none]"],
        "does not survive autocast; give 'full_offload'",
    ),
    (
        ["engine.activation_checkpointing=[selective,none,none,none]"],
        "give 'selective_attention' or 'selective_mlp'",
    ),
    (["optim.kind=fused_lamb"], "wrong on ZeRO's flat shards"),
    (["optim.kind=lamb", "optim.implementation=apex"], "one trust ratio for a whole flat shard"),
    (["optim.kind=lamb", "optim.implementation=deepspeed_cpu"], "is no LAMB"),
    (["optim.implementation=deepspeed_cpu"], "give engine.offload=optimizer"),
    (
        ["optim.implementation=apex", "engine.offload=optimizer"],
        "apex's FusedAdam works on the GPU's memory",
    ),
]


@pytest.mark.parametrize(("overrides", "reason"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_work_is_refused_with_the_reason(overrides, reason):
    with pytest.raises(ConfigError) as caught:
        load_run("swin_l_22k", overrides)
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.offload=optimizer_and_parameters", "engine.zero_stage=3"],
        ["engine.offload=optimizer", "optim.implementation=deepspeed_cpu"],
        ["engine.compile=true", "engine.zero_stage=2"],
        ["optim.kind=lamb", "optim.eps=1e-6", "engine.offload=optimizer"],
        ["optim.implementation=apex", "engine.layer_norm=apex"],
        ["engine.activation_checkpointing=[full_offload,full,selective_mlp,selective_attention]"],
    ],
    ids=str,
)
def test_what_works_is_taken(overrides):
    load_run("swin_l_22k", overrides)


def test_one_word_of_activation_checkpointing_is_meant_for_every_stage():
    config = load_run("swin_l_22k", ["engine.activation_checkpointing=full"])
    assert config.engine.activation_checkpointing == ("full",) * 4
