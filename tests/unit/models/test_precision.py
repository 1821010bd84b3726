"""Which type each part of the network computes in under autocast."""

import pytest
import torch
from tiny_swin import FAMILIES, randomized, tiny_shape
from torch import nn

from pretrain.models.mixers import attend
from pretrain.models.swin import Block, Swin

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_in_16_bits_and_the_rest_is_not(family, precision):
    model = randomized(Swin(tiny_shape(family=family)))
    half, seen = TYPES[precision], {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(
                name, (type(module), inputs[0].dtype, output.dtype)
            )
        )
    with torch.autocast("cpu", half):
        logits = model(torch.randn(2, 3, 64, 64))
    for name, (kind, entering, leaving) in seen.items():
        if kind in (nn.LayerNorm, Block):  # norms, and the residual stream between blocks
            assert (entering, leaving) == (torch.float32, torch.float32), name
        elif "cpb_mlp" in name:  # V2's bias network
            assert leaving == torch.float32, name
        elif issubclass(kind, nn.Linear | nn.Conv2d | nn.Conv1d) or kind.__name__ == "Mlp":
            assert leaving == half, name
    assert logits.dtype == half  # the loss makes them fp32 before anything else
    logits.float().sum().backward()
    assert {value.grad.dtype for value in model.parameters() if value.grad is not None} == {
        torch.float32
    }


@pytest.mark.parametrize("precision", TYPES)
def test_softmax_is_taken_of_logits_that_were_not_rounded(precision):
    """Rounded to bf16, logits near 30 would be off by up to 0.12, and weights by as much."""
    half, generator = TYPES[precision], torch.Generator().manual_seed(0)
    shape = (2, 3, 4, 16, 8)  # images, windows, heads, tokens, head width
    query, key, value = (torch.randn(shape, generator=generator).to(half) for _ in range(3))
    query = query * 4
    bias = torch.randn(4, 16, 16, generator=generator).to(half).float()
    found = attend(query, key, value, bias, None, 1.0)
    assert found.dtype == half
    scores = query.double() @ key.double().transpose(-1, -2) + bias.double()
    assert scores.abs().max() > 30
    exact = (scores.softmax(-1) @ value.double()).transpose(2, 3).flatten(3)
    rounded = (scores.to(half).double().softmax(-1) @ value.double()).transpose(2, 3).flatten(3)
    error, of_rounding = (found.double() - exact).abs(), (rounded - exact).abs()
    limit = torch.finfo(half).eps * 2 * float(value.abs().max())
    assert error.max() < limit
    assert of_rounding.max() > 3 * error.max()
