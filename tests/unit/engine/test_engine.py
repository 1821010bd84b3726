import pytest
import torch
import torch.nn.functional as F

from pretrain.engine.classification import soft_target_cross_entropy


def test_hard_targets_are_ordinary_cross_entropy():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
    losses = soft_target_cross_entropy(logits, torch.eye(3)[[0, 2]])
    assert losses.tolist() == pytest.approx([0.2413113, 1.0986123], abs=1e-6)


def test_soft_targets_mix_linearly():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    one, other = torch.eye(5)[[0, 1, 2, 3]], torch.eye(5)[[4, 3, 2, 1]]
    mixed = soft_target_cross_entropy(logits, 0.3 * one + 0.7 * other)
    apart = [F.cross_entropy(logits, t.argmax(1), reduction="none") for t in (one, other)]
    assert torch.allclose(mixed, 0.3 * apart[0] + 0.7 * apart[1], atol=1e-6)


def test_computes_in_fp32():
    logits = torch.tensor([[300.0, 299.0]], dtype=torch.bfloat16)
    losses = soft_target_cross_entropy(logits, torch.tensor([[1.0, 0.0]]))
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
