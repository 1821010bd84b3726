import subprocess
import sys

import pytest

from pretrain.config.engine import EngineConfig, OptimConfig
from pretrain.engine.zero_config import skips_on_device, zero_config

GOLDEN_STAGE_1 = {
    "train_micro_batch_size_per_gpu": 64,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 5.0,
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "communication_data_type": None,
    "zero_allow_untested_optimizer": False,
    "zero_force_ds_cpu_optimizer": False,
    "fp16": {"enabled": False},
    "bf16": {"enabled": False},
    "torch_autocast": {
        "enabled": True,
        "dtype": "bfloat16",
        "lower_precision_safe_modules": [],
    },
    "zero_optimization": {
        "stage": 1,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 50_000_000,
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "allgather_bucket_size": 50_000_000,
        "overlap_comm": False,
        "round_robin_gradients": False,
        "elastic_checkpoint": False,
        "ignore_unused_parameters": True,
        "memory_efficient_linear": False,
    },
    "steps_per_print": 2**31,
    "wall_clock_breakdown": False,
    "timers": {"throughput": {"enabled": False, "synchronized": False}},
    "memory_breakdown": False,
    "dump_state": False,
}


def make(clip: float = 5.0, kind: str = "adamw", pin_memory: bool = False, **engine):
    optim = OptimConfig(lr=1.0, clip_grad_norm=clip, kind=kind)
    return zero_config(EngineConfig(**engine), optim, 64, 2, pin_memory=pin_memory)


def test_golden_default():
    assert make() == GOLDEN_STAGE_1


def test_golden_stage_3():
    expected = GOLDEN_STAGE_1["zero_optimization"] | {
        "stage": 3,
        "overlap_comm": True,
        "sub_group_size": 10**12,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": 10_000,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
        "stage3_gather_16bit_weights_on_model_save": False,
    }
    assert make(zero_stage=3) == GOLDEN_STAGE_1 | {"zero_optimization": expected}


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_clipping_is_always_written(clip):
    assert make(clip)["gradient_clipping"] == clip


def test_fp32_turns_autocast_off():
    assert make(precision="fp32")["torch_autocast"]["enabled"] is False


def test_bf16_reduction_names_the_modules():
    modules = make(reduce_dtype="bf16")["torch_autocast"]["lower_precision_safe_modules"]
    assert modules == ["torch.nn.Linear", "torch.nn.Conv2d"]


def test_plans_need_no_torch():
    code = (
        "import sys, pretrain.engine.zero_config, pretrain.engine.schedule, "
        "pretrain.checkpoint.layout; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["False", "False"]


def test_fp16_is_autocast_over_fp32_weights():
    found = make(precision="fp16")
    assert found["torch_autocast"]["dtype"] == "float16"
    assert found["torch_autocast"]["lower_precision_safe_modules"] == []
    assert not found["fp16"]["enabled"]


@pytest.mark.parametrize("pinned", [True, False])
def test_offload_goes_to_the_hosts_memory(pinned):
    place = {"device": "cpu", "pin_memory": pinned}
    section = make(offload="optimizer", pin_memory=pinned)["zero_optimization"]
    assert section["offload_optimizer"] == place
    assert "offload_param" not in section
    both = make(offload="optimizer_and_parameters", zero_stage=3, pin_memory=pinned)
    assert both["zero_optimization"]["offload_param"] == place


def test_only_our_own_optimizer_is_vouched_for():
    assert make(kind="lamb")["zero_allow_untested_optimizer"]


@pytest.mark.parametrize(
    ("optim", "engine", "on_device"),
    [
        ({}, {}, True),
        ({}, {"zero_stage": 2, "precision": "fp32"}, True),
        ({}, {"zero_stage": 3}, False),
        ({}, {"precision": "fp16"}, False),
        ({}, {"offload": "optimizer"}, False),
        ({"kind": "lamb"}, {}, False),
        ({"implementation": "apex"}, {}, False),
    ],
)
def test_where_a_step_that_is_not_finite_is_skipped(optim, engine, on_device):
    assert skips_on_device(EngineConfig(**engine), OptimConfig(lr=1.0, **optim)) is on_device
