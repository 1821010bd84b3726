"""Counted operations are those that torch itself counts."""

import json

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from pretrain.profile.flops import flops_of


def products(differentiable_bias: bool) -> torch.Tensor:
    images = torch.randn(2, 3, 16, 16)
    weight = torch.randn(8, 3, 4, 4, requires_grad=True)
    x = F.conv2d(images, weight, stride=4).flatten(2).transpose(1, 2)  # [2, 16, 8]
    x = F.linear(x, torch.randn(24, 8, requires_grad=True), torch.randn(24, requires_grad=True))
    query, key, value = x.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    bias = torch.randn(1, 2, 16, 16, requires_grad=differentiable_bias)
    x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return x.square().sum() + F.conv1d(x.flatten(0, 1), torch.randn(8, 4, 1), groups=4).sum()


@pytest.mark.parametrize("differentiable_bias", [True, False])
def test_operations_are_counted_as_torch_counts_them(tmp_path, differentiable_bias):
    """With a bias that is learnt torch takes attention apart; without, it is one operator.

    That one torch's counter passes over on CPUs, though it has formulas for it.
    """
    with FlopCounterMode(display=False) as counter:
        products(differentiable_bias).backward()
    expected = counter.get_total_flops()
    if not differentiable_bias:
        shape = (2, 2, 16, 4)
        expected += sdpa_flop_count(shape, shape, shape)
        expected += sdpa_backward_flop_count(shape, shape, shape, shape)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        products(differentiable_bias).backward()
    recorded.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    counted = sum(flops_of(event["name"], event.get("args", {})) for event in events)
    assert counted == expected > 0


def test_without_shapes_nothing_is_counted():
    assert flops_of("aten::addmm", {}) == flops_of("aten::convolution", {}) == 0
    assert flops_of("aten::_scaled_dot_product_flash_attention", {"Input Dims": []}) == 0
