"""Cross-entropy without the chances of all classes, against plain torch."""

import pytest
import torch

from pretrain.engine.classification import soft_target_cross_entropy
from pretrain.kernels.cross_entropy import fused_soft_target_cross_entropy

pytest.importorskip("triton", reason="triton has no wheel for this machine")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, 5e-6), (torch.bfloat16, 1e-2)], ids=str
)
@pytest.mark.parametrize("classes", [1, 10, 4096, 4097, 21841])
def test_equals_plain_torch(classes, dtype, rounding):
    logits = (drawn(4, classes) * 8).to(dtype).requires_grad_()
    targets = drawn(4, classes, seed=1).softmax(-1)
    targets[0] = 0  # as of hard labels
    targets[0, classes // 2] = 1
    found, expected = (
        loss(logits, targets)
        for loss in (fused_soft_target_cross_entropy, soft_target_cross_entropy)
    )
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    grad = drawn(4, seed=2)
    ours, theirs = (torch.autograd.grad(loss, logits, grad)[0] for loss in (found, expected))
    assert ours.dtype == dtype
    assert (ours - theirs).abs().max() <= rounding * theirs.abs().max().clamp_min(1e-6)


def test_logits_of_any_size_and_ruled_out_classes_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [float("-inf"), 2.0, 1.0]], device=DEVICE)
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]], device=DEVICE)
    found = fused_soft_target_cross_entropy(logits.requires_grad_(), targets)
    normalizer = logits.detach().double().logsumexp(-1)
    meant = torch.tensor([0.0, 1.25], dtype=torch.float64, device=DEVICE)
    assert torch.allclose(found.double(), normalizer - meant)
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_not_finite_is_not_hidden(value):
    logits = drawn(2, 7)
    logits[1, 3] = float(value)
    found = fused_soft_target_cross_entropy(logits, torch.full((2, 7), 1 / 7, device=DEVICE))
    assert found[0].isfinite() and not found[1].isfinite()


def test_the_operator_keeps_the_contract_of_torch():
    arguments = (drawn(2, 7).requires_grad_(), drawn(2, 7, seed=1).softmax(-1))
    torch.library.opcheck(
        torch.ops.swin_pretrain.soft_target_cross_entropy, arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip
