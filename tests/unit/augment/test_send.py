"""What is sent to a device arrives as it was; test_waits_ranks.py shows that nothing waits."""

import pytest
import torch

from pretrain.augment.transfer import pack, send

CPU = torch.device("cpu")


def test_values_types_and_shapes_arrive_together():
    sent = [
        torch.arange(5, dtype=torch.uint8),
        torch.tensor(7, dtype=torch.int64),
        torch.empty(0, 6, dtype=torch.float64),
        torch.randn(3, 2).t(),  # not contiguous
        torch.tensor([True, False, True]),
        torch.tensor([[torch.nan, -0.0]], dtype=torch.float64),
    ]
    arrived = send(sent, CPU)
    for left, right in zip(sent, arrived, strict=True):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert torch.equal(
            left.contiguous().view(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8)
        )
    assert len({tensor.untyped_storage().data_ptr() for tensor in arrived}) == 1


def test_nothing_to_send_is_nothing():
    assert send([], CPU) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_what_is_sent_to_a_gpu_is_page_locked():
    assert pack([torch.arange(3)], pinned=True).is_pinned()
