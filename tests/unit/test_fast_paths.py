"""Which kernels a run takes, and what it says when it does without."""

from dataclasses import replace

import pytest
import torch

from pretrain import fast_paths
from pretrain.config.load import load_run
from pretrain.engine.classification import soft_target_cross_entropy
from pretrain.kernels.cross_entropy import fused_soft_target_cross_entropy
from pretrain.models.mixers import Attention
from pretrain.objective import objective_of

pytest.importorskip("triton", reason="triton has no wheel for this machine")
CPU = torch.device("cpu")
SMALL = [
    "model.variant=swin_t", "model.embed_dim=12", "model.heads=[1,2,2,2]", "model.depths=[1,1,1,1]",
    "model.image_size=32", "model.window_size=4", "model.num_classes=7", "engine.precision=fp32",
]  # fmt: skip
FUSED = ["engine.attention=fused", "engine.layer_norm=fused", "engine.cross_entropy=fused"]


def taken(*overrides: str):
    config = load_run("swin_l_22k", [*SMALL, *overrides])
    return fast_paths.take_fast_paths(objective_of(config), config, CPU)


def test_auto_is_plain_torch_on_a_cpu_and_says_nothing():
    objective, paths = taken()
    assert paths == fast_paths.FastPaths("plain", "torch", "plain")
    assert objective.loss is soft_target_cross_entropy


def test_what_is_asked_for_is_tried_and_taken():
    objective, paths = taken(*FUSED)
    assert paths == fast_paths.FastPaths("fused", "fused", "fused")
    assert objective.loss is fused_soft_target_cross_entropy
    blocks = [block for stage in objective.encoder.layers for block in stage.blocks]  # pyright: ignore
    assert all(block.attn.fused and block.fused_norms for block in blocks)


def test_a_kernel_that_computes_something_else_is_not_taken(monkeypatch):
    real = fast_paths.fused_soft_target_cross_entropy
    monkeypatch.setattr(
        fast_paths, "fused_soft_target_cross_entropy", lambda *given: real(*given) * 1.01
    )
    objective, paths = taken("engine.cross_entropy=fused")
    assert paths.cross_entropy == "plain"
    assert objective.loss is soft_target_cross_entropy
    (remark,) = paths.remarks
    assert remark.startswith("engine.cross_entropy: plain instead of the fused kernel: ")
    assert "differs from plain torch by" in remark


def test_a_wrong_gradient_of_attention_is_found(monkeypatch):
    from pretrain.models import mixers

    real = mixers.window_attention

    def without_bias_gradient(qkv, bias, scale, **named):
        return real(qkv, bias.detach(), scale, **named)

    monkeypatch.setattr(mixers, "window_attention", without_bias_gradient)
    objective, paths = taken("engine.attention=fused")
    assert paths.attention == "plain"
    assert "attention of stage 1" in paths.remarks[0]
    mixers_found = [m for m in objective.model.modules() if isinstance(m, Attention)]
    assert mixers_found and not any(m.fused for m in mixers_found)


def test_what_does_not_compile_costs_one_line(monkeypatch):
    def refused(*_):
        raise RuntimeError("ptxas: out of resources\nand more")

    monkeypatch.setattr(fast_paths, "try_layer_norms", refused)
    _, paths = taken("engine.layer_norm=fused")
    assert paths.layer_norm == "torch"
    assert paths.remarks == (
        "engine.layer_norm: torch instead of the fused kernel: "
        "RuntimeError: ptxas: out of resources",
    )


def test_without_triton_or_a_gpu_it_says_which(monkeypatch):
    monkeypatch.setattr(fast_paths, "find_spec", lambda _: None)
    assert "triton is not installed" in taken("engine.attention=fused")[1].remarks[0]
    monkeypatch.undo()
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    assert "computes on cpu" in taken("engine.attention=fused")[1].remarks[0]


def test_old_gpus_are_named(monkeypatch):
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    reason = fast_paths.why_unusable(torch.device("cuda:0"))
    assert reason == "it needs compute capability 8.0, Tesla T4 has 7.5"


def test_networks_without_attention_say_so():
    swin_mlp = ["model.variant=swin_mlp_t_c12", "model.window_size=4", "model.heads=[1,1,1,1]"]
    config = load_run("swin_l_22k", [*SMALL, *swin_mlp, "engine.attention=fused"])
    paths = fast_paths.choose(objective_of(config).encoder, config, CPU)
    assert paths.attention == "plain"
    assert "this model has none of it" in paths.remarks[0]


def on_a_gpu(monkeypatch, *overrides: str) -> fast_paths.FastPaths:
    """What would be chosen where every kernel runs."""
    for name in ("try_attention", "try_layer_norms", "try_cross_entropy"):
        monkeypatch.setattr(fast_paths, name, lambda *_: None)
    monkeypatch.setattr(fast_paths, "why_unusable", lambda _: None)
    config = load_run("swin_l_22k", [*SMALL, "engine.precision=bf16", *overrides])
    return fast_paths.choose(objective_of(config).encoder, config, torch.device("cuda:0"))


def test_auto_takes_all_kernels_on_a_gpu(monkeypatch):
    paths = on_a_gpu(monkeypatch)
    assert paths == fast_paths.FastPaths("fused", "fused", "fused")


@pytest.mark.parametrize("setting", ["engine.compile=true", "engine.zero_stage=3"])
def test_auto_leaves_the_norms_to_whoever_has_them(monkeypatch, setting):
    paths = on_a_gpu(monkeypatch, setting)
    assert paths == fast_paths.FastPaths("fused", "torch", "fused")


def test_auto_is_plain_in_fp32(monkeypatch):
    paths = on_a_gpu(monkeypatch, "engine.precision=fp32")
    assert paths == fast_paths.FastPaths("plain", "torch", "plain")


@pytest.mark.parametrize("field", ["attention", "cross_entropy", "layer_norm"])
def test_plain_stays_plain(monkeypatch, field):
    plain = "torch" if field == "layer_norm" else "plain"
    paths = on_a_gpu(monkeypatch, f"engine.{field}={plain}")
    assert paths == replace(fast_paths.FastPaths("fused", "fused", "fused"), **{field: plain})
