"""Layer norms with the residual sum beside them, against plain torch."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.kernels.layer_norm import add_layer_norm, add_normalized, layer_norm
from pretrain.kernels.residual import add_scaled

pytest.importorskip("triton", reason="triton has no wheel for this machine")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-5
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def scales(kind: str) -> Tensor | None:
    return None if kind == "no drop path" else torch.tensor([0.0, 1.25, 1.5], device=DEVICE)


def plain_add_layer_norm(x, branch, scale, weight, bias, dtype):
    total = x + branch.float() * (1 if scale is None else scale.view(-1, 1, 1, 1))
    return total, F.layer_norm(total, weight.shape, weight, bias, EPS).to(dtype)


def plain_add_normalized(x, branch, scale, weight, bias):
    normal = F.layer_norm(branch.float(), weight.shape, weight, bias, EPS)
    return x + normal * (1 if scale is None else scale.view(-1, 1, 1, 1))


def check(found, expected, leaves, dtype):
    """Outputs, and every gradient under the same gradients of the outputs."""
    grads = [drawn(*out.shape, seed=20 + index).to(out.dtype) for index, out in enumerate(expected)]
    pairs = list(zip(found, expected, strict=True))
    ours, theirs = (torch.autograd.grad(outs, leaves, grads) for outs in (found, expected))
    for mine, plain in pairs + list(zip(ours, theirs, strict=True)):
        assert mine.dtype == plain.dtype
        allowed = ROUNDING[mine.dtype] * plain.float().abs().max()
        assert (mine.float() - plain.float()).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [12, 1536])
@pytest.mark.parametrize("drop_path", ["no drop path", "drop path"])
def test_equals_plain_torch(dtype, channels, drop_path):
    x = (drawn(3, 3, 5, channels) * 3 + 1).requires_grad_()
    branch = drawn(3, 3, 5, channels, seed=1).to(dtype).requires_grad_()
    weight, bias = (drawn(channels, seed=seed).requires_grad_() for seed in (2, 3))
    scale = scales(drop_path)
    check(
        add_layer_norm(x, branch, scale, weight, bias, EPS, dtype),
        plain_add_layer_norm(x, branch, scale, weight, bias, dtype),
        [x, branch, weight, bias], dtype,
    )  # fmt: skip
    check(
        [add_scaled(x, branch, scale)],
        [x + branch.float() * (1 if scale is None else scale.view(-1, 1, 1, 1))],
        [x, branch], dtype,
    )  # fmt: skip
    check(
        [add_normalized(x, branch, scale, weight, bias, EPS)],
        [plain_add_normalized(x, branch, scale, weight, bias)],
        [x, branch, weight, bias], dtype,
    )  # fmt: skip
    check(
        [layer_norm(x, weight, bias, EPS, dtype)],
        [F.layer_norm(x, weight.shape, weight, bias, EPS).to(dtype)],
        [x, weight, bias], dtype,
    )  # fmt: skip


def test_either_result_may_go_unused():
    x, branch = drawn(2, 3, 3, 16).requires_grad_(), drawn(2, 3, 3, 16, seed=1).requires_grad_()
    weight, bias = (drawn(16, seed=seed).requires_grad_() for seed in (2, 3))
    for index in range(2):
        found = add_layer_norm(x, branch, None, weight, bias, EPS, torch.float32)[index]
        expected = plain_add_layer_norm(x, branch, None, weight, bias, torch.float32)[index]
        ours, theirs = (
            torch.autograd.grad(out.square().sum(), [x, branch]) for out in (found, expected)
        )
        assert all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, theirs, strict=True)
        )


def test_the_operator_keeps_the_contract_of_torch():
    x, branch = drawn(2, 3, 3, 16).requires_grad_(), drawn(2, 3, 3, 16, seed=1).requires_grad_()
    weight, bias = (drawn(16, seed=seed).requires_grad_() for seed in (2, 3))
    operator = torch.ops.swin_pretrain.residual_layer_norm
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    scale = torch.tensor([0.0, 1.25], device=DEVICE)
    torch.library.opcheck(
        torch.ops.swin_pretrain.add_scaled, (x, branch, scale, torch.float32), test_utils=checks
    )
    for branched, post in ((branch, False), (branch, True), (None, False)):
        arguments = (x, branched, scale, weight, bias, EPS, torch.float32, post)
        torch.library.opcheck(operator, arguments, test_utils=checks)
