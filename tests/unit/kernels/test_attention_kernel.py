"""The attention kernel against plain torch: outputs and every gradient."""

import pytest
import torch
from torch import Tensor, nn

from pretrain.kernels.attention import window_attention
from pretrain.models.mixers import Attention, CosineAttention, WindowAttention
from pretrain.models.windows import MASKED_LOGIT, shift_mask

pytest.importorskip("triton", reason="triton has no wheel for this machine")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDING = {"fp32": 3e-5, "bf16": 3e-2}
"""Largest difference as a fraction of the largest value."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def attention_of(kind: str, channels: int, heads: int, window: int) -> Attention:
    make = WindowAttention if kind == "v1" else CosineAttention
    extra = () if kind == "v1" else (window,)
    attention = make(channels, heads, window, *extra).to(DEVICE)
    for seed, (name, parameter) in enumerate(attention.named_parameters()):
        with torch.no_grad():
            values = drawn(*parameter.shape, seed=seed + 1)
            parameter.copy_(values / 2 + 3 if name == "logit_scale" else values / 2)
    return attention


def computed(
    attention: Attention, fused: bool, maps: Tensor, window: int, shift: int, precision: str
) -> dict[str, Tensor]:
    """The output, and the gradients of the maps and of every parameter."""
    attention.fused = fused
    padded = [side + -side % window for side in maps.shape[1:3]]
    mask = shift_mask(*padded, window, shift, DEVICE) if shift else None
    leaf = maps.clone().requires_grad_()
    attention.zero_grad()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
        out = attention(leaf, window, shift, mask)
    (out.float() * drawn(*out.shape, seed=9)).sum().backward()
    found = {"output": out.detach(), "maps": leaf.grad}
    found |= {name: parameter.grad for name, parameter in attention.named_parameters()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, as a fraction of the largest value."""
    expected = expected.double()
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-9)).item()


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("kind", ["v1", "v2"])
@pytest.mark.parametrize(
    ("window", "shift", "height", "width", "heads", "depth"),
    [
        (7, 3, 14, 14, 1, 32),  # as the recipes: one tile
        pytest.param(7, 0, 14, 7, 1, 32, marks=pytest.mark.slow),
        (4, 2, 7, 8, 2, 12),  # padded maps; a head width that is no power of two
        pytest.param(
            3, 1, 6, 6, 1, 16, marks=pytest.mark.slow
        ),  # windows smaller than a tile can be
        (9, 4, 9, 13, 1, 8),  # two tiles, padded
        pytest.param(12, 6, 24, 12, 1, 16, marks=pytest.mark.slow),  # three tiles, as at 384 pixels
    ],
)
def test_equals_plain_attention(kind, window, shift, height, width, heads, depth, precision):
    attention = attention_of(kind, heads * depth, heads, window)
    maps = drawn(1 if window > 8 else 2, height, width, heads * depth)
    arguments = (maps, window, shift, precision)
    plain, fused = (computed(attention, kernel, *arguments) for kernel in (False, True))
    # In 16 bits both round, each in its own order: neither is the truth.
    exact = computed(attention.double(), False, maps.double(), window, shift, "fp32")
    assert plain.keys() == fused.keys() == exact.keys()
    for name, expected in exact.items():
        allowed = max(ROUNDING[precision], 3 * difference(plain[name], expected))
        assert difference(fused[name], expected) < allowed, name


def test_smaller_windows_than_built_for_take_the_middle_of_the_bias():
    attention = attention_of("v1", 32, 2, 7)
    maps = drawn(1, 8, 8, 32)
    plain, fused = (computed(attention, kernel, maps, 4, 2, "fp32") for kernel in (False, True))
    for name, expected in plain.items():
        assert difference(fused[name], expected) < ROUNDING["fp32"], name


def test_keys_of_length_zero_get_the_gradients_of_plain_torch():
    """Padding is: V2's keys have no bias."""
    qkv, bias, scale = drawn(1, 2, 2, 3 * 16), drawn(2, 4, 4, seed=1), drawn(2, seed=2).exp()
    qkv[:, 1, 1, 16:32] = 0
    leaves = [tensor.requires_grad_() for tensor in (qkv, bias, scale)]
    out = window_attention(*leaves, window=2, shift=0, masked_logit=MASKED_LOGIT)
    found = torch.autograd.grad(out.square().sum(), leaves)
    query, key, value = qkv.view(1, 4, 3, 2, 8).permute(2, 0, 3, 1, 4)
    query, key = (nn.functional.normalize(x, dim=-1, eps=1e-12) for x in (query, key))
    logits = query @ key.transpose(-1, -2) * scale[:, None, None] + bias
    expected = (logits.softmax(-1) @ value).transpose(1, 2).reshape(out.shape)
    assert difference(out, expected) < ROUNDING["fp32"]
    for ours, theirs in zip(
        found, torch.autograd.grad(expected.square().sum(), leaves), strict=True
    ):
        assert difference(ours, theirs) < ROUNDING["fp32"]


def test_the_same_input_gives_the_same_bits():
    attention = attention_of("v2", 32, 2, 7)
    maps = drawn(2, 14, 14, 32)
    first, again = (computed(attention, True, maps, 7, 3, "bf16") for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("cosine", [False, True])
def test_the_operator_keeps_the_contract_of_torch(cosine):
    qkv, bias = drawn(1, 4, 4, 3 * 16).requires_grad_(), drawn(2, 4, 4, seed=1).requires_grad_()
    scale = drawn(2, seed=2).exp().requires_grad_() if cosine else None
    arguments = (qkv, bias, scale, 2, 1, MASKED_LOGIT)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.swin_pretrain.window_attention, arguments, test_utils=checks)
