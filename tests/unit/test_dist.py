"""`pretrain.dist` in one process; several ranks are in tests/dist."""

import pytest
import torch

from pretrain import dist
from pretrain.errors import LaunchError
from pretrain.world import World

CPU = torch.device("cpu")


def test_alone_without_any_environment(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    dist.initialize(World(), CPU, timeout_seconds=30)
    try:
        assert dist.sum_across_ranks([1.5, 2.0]) == [1.5, 2.0]
        assert dist.max_across_ranks(-3) == -3
        assert dist.gather_objects({"a": [1, None]}) == [{"a": [1, None]}]
        assert dist.broadcast_text("x") == "x"
        with pytest.raises(TypeError, match="rank zero must give the text"):
            dist.broadcast_text(None)
        dist.barrier()
    finally:
        dist.shutdown()
    dist.shutdown()  # twice is harmless


def test_use_before_initialize_is_a_clear_error():
    with pytest.raises(RuntimeError, match=r"pretrain\.dist\.initialize"):
        dist.sum_across_ranks([1.0])


def test_several_ranks_must_know_where_to_meet(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(LaunchError, match="MASTER_ADDR not set; start the ranks"):
        dist.initialize(World(rank=0, size=2), CPU, timeout_seconds=30)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "http")
    with pytest.raises(LaunchError, match="expected a port number, got 'http'"):
        dist.initialize(World(rank=0, size=2), CPU, timeout_seconds=30)
