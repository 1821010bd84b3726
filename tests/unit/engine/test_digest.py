"""One number for many tensors, in which every bit and every place counts."""

import pytest
import torch

from pretrain.engine import digest as module
from pretrain.engine.digest import digest
from pretrain.engine.engine import _spoilt_unless_finite


def some(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(5, 7, generator=generator).to(dtype), torch.arange(11).to(dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.bool])
def test_one_bit_changes_it(dtype):
    tensors = some(dtype)
    before = digest(tensors)
    assert digest([tensor.clone() for tensor in tensors]) == before
    tensors[0].view(-1).view(torch.uint8)[-1] ^= 1
    assert digest(tensors) != before


def test_places_and_order_count():
    first, second = some()
    assert digest([first, second]) != digest([second, first])
    assert digest([first.t().contiguous()]) != digest([first])
    assert digest([first.t()]) == digest([first.t().contiguous()])
    assert digest([]) == 0


def test_parts_add_up_to_the_whole(monkeypatch):
    long = torch.arange(1000.0)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 64)
    in_parts = digest([long])
    long[999] = 0
    assert digest([long]) != in_parts


@pytest.mark.parametrize("loss", [float("inf"), float("-inf"), float("nan")])
def test_a_loss_that_is_not_finite_has_no_finite_gradient(loss):
    weight = torch.ones((), requires_grad=True)
    _spoilt_unless_finite(weight * 2 + loss).backward()
    assert weight.grad is not None
    assert weight.grad.isnan()


def test_a_finite_loss_is_left_as_it_is():
    weight = torch.tensor(0.1234567, requires_grad=True)
    loss = weight * 3
    given = _spoilt_unless_finite(loss)
    given.backward()
    assert given.item() == loss.item()
    assert weight.grad is not None
    assert weight.grad.item() == 3.0
