"""What the measuring process says of its device."""

from pathlib import Path

import pytest
import torch

from pretrain.config.engine import EngineConfig
from pretrain.errors import EngineError
from pretrain.fast_paths import FastPaths
from pretrain.plan.resources import device_name_here
from pretrain.tune.measure import check_taken, describe


def test_a_cpu_has_a_name_and_its_ranks_share_the_memory():
    alone, shared = (describe(torch.device("cpu"), ranks) for ranks in (1, 4))
    assert alone["name"] == shared["name"] == device_name_here("cpu")
    first = Path("/proc/meminfo").read_text().splitlines()[0]
    assert first.startswith("MemTotal:")
    assert 0 < shared["memory_bytes"] < alone["memory_bytes"] <= int(first.split()[1]) * 1024


def test_gpus_are_named_by_their_driver(monkeypatch, tmp_path: Path):
    monkeypatch.setattr("pretrain.plan.resources._NVIDIA_DEVICES", tmp_path)
    assert device_name_here("cuda") is None
    for number in range(2):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
        told = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 18\nGPU UUID: \t GPU-1\n"
        (tmp_path / f"0000:0{number}:00.0" / "information").write_text(told)
    assert device_name_here("cuda") == "NVIDIA H100 80GB HBM3"
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: Tesla T4\n")
    assert device_name_here("cuda") is None


def test_a_candidate_is_not_measured_without_the_kernel_it_is_named_after():
    fell_back = FastPaths(
        "plain", "torch", "plain", ("engine.attention: plain instead: no Triton",)
    )
    for asked in ("auto", "plain"):
        check_taken(EngineConfig(attention=asked), fell_back)  # pyright: ignore[reportArgumentType]
    with pytest.raises(EngineError, match="no Triton"):
        check_taken(EngineConfig(attention="fused"), fell_back)
