"""The parts that mix tokens, against their definitions written out."""

import math

import pytest
import torch
from tiny_swin import randomized, tiny_shape
from torch.nn import functional as F

from pretrain.models.mixers import (
    CosineAttention,
    SpatialMlp,
    log_coordinates,
    relative_position_index,
    to_length,
)
from pretrain.models.swin import Block, Swin
from pretrain.models.windows import (
    cut_windows,
    merge_windows,
    partition_windows,
    paste_windows,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_log_coordinates_are_equation_four():
    coordinates = log_coordinates(3, 3).view(5, 5, 2)
    # Offsets -2..2 become -8..8, and 8 becomes log2(9) / log2(8).
    expected = [math.copysign(math.log2(abs(d) * 4 + 1) / 3, d) for d in range(-2, 3)]
    assert coordinates[:, 2, 0].tolist() == pytest.approx(expected)
    assert coordinates[2, :, 1].tolist() == pytest.approx(expected)
    assert coordinates[:, 2, 1].tolist() == [0.0] * 5


def test_offsets_known_from_training_keep_their_coordinates_in_larger_windows():
    small = log_coordinates(4, 4).view(7, 7, 2)
    large = log_coordinates(6, 4).view(11, 11, 2)
    assert torch.equal(large[2:9, 2:9], small)
    assert large[0, 0, 0] < small[0, 0, 0]


def test_a_window_of_one_token_has_one_finite_offset():
    assert log_coordinates(1, 1).tolist() == [[0.0, 0.0]]


def test_position_biases_lie_between_0_and_16_and_follow_the_offset():
    attention = CosineAttention(8, 2, 3, 3).double()
    with torch.no_grad():
        for parameter in attention.cpb_mlp.parameters():
            parameter.copy_(drawn(*parameter.shape))
    bias = attention.position_bias(3)
    assert bias.shape == (2, 9, 9)
    assert 0 <= bias.min() < 1 and 15 < bias.max() <= 16
    index = relative_position_index(3).view(9, 9)
    for offset in index.unique():
        assert (bias[:, index == offset] == bias[:, index == offset][:, :1]).all()


def test_position_biases_are_computed_in_full_precision_under_autocast():
    attention = CosineAttention(8, 2, 24, 24)
    exact = attention.position_bias(24)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention.position_bias(24), exact)


@pytest.mark.parametrize("scale", [10.0, 1000.0])
def test_cosine_attention_is_its_definition(scale):
    channels, heads, window = 8, 2, 2
    attention = CosineAttention(channels, heads, window, window).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(drawn(*parameter.shape))
        attention.logit_scale.fill_(math.log(scale))
        windows, mask = drawn(3, 2, 4, channels, seed=1), drawn(2, 4, 4, seed=2)
        found = attention(merge_windows(windows, window, 2, 4), window, 0, mask)
        found = partition_windows(found, window)
        wq, wk, wv = attention.qkv.weight.chunk(3)
        query = windows @ wq.T + attention.q_bias
        key, value = windows @ wk.T, windows @ wv.T + attention.v_bias
        bias, parts = attention.position_bias(window), []
        for head, lanes in enumerate(torch.arange(channels).chunk(heads)):
            q, k = query[..., lanes], key[..., lanes]
            cosine = F.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
            logits = min(scale, 100.0) * cosine + bias[head] + mask
            parts.append(logits.softmax(-1) @ value[..., lanes])
        expected = attention.proj(torch.cat(parts, dim=-1))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_a_logit_scale_above_its_clamp_gets_no_gradient():
    attention = CosineAttention(8, 2, 2, 2)
    with torch.no_grad():
        attention.logit_scale.copy_(torch.tensor([4.0, 5.0]).view(2, 1, 1))
        attention.cpb_mlp[2].weight.normal_()
    attention(drawn(1, 2, 2, 8).float(), 2, 0, None).square().sum().backward()
    gradient = attention.logit_scale.grad
    assert gradient is not None
    assert gradient[0] != 0 and gradient[1] == 0


def test_lengths_are_exact_in_low_precision_and_zeros_stay_zeros():
    vectors = drawn(1, 1, 2, 64, 32).bfloat16()
    vectors[0, 0, 0, 0] = 0
    scaled = to_length(vectors, torch.full((2, 1, 1), 100.0))
    assert scaled.dtype == torch.bfloat16
    lengths = scaled.double().norm(dim=-1)
    assert lengths[0, 0, 0, 0] == 0
    lengths[0, 0, 0, 0] = 100
    assert (lengths - 100).abs().max() < 0.2  # each number rounded to 8 bits, errors averaging out


def test_gradients_stay_finite_where_padding_makes_keys_of_length_zero():
    model = randomized(Swin(tiny_shape(family="v2")))
    model(drawn(1, 3, 50, 70).float()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_spatial_mlp_is_one_matrix_per_head():
    heads, window, channels = 3, 2, 6
    mlp = SpatialMlp(heads, window).double()
    windows = drawn(2, 5, 4, channels)
    found = partition_windows(mlp(merge_windows(windows, window, 2, 10), window, 0), window)
    matrices, biases = mlp.weight.view(heads, 4, 4), mlp.bias.view(heads, 4)
    for head, lanes in enumerate(torch.arange(channels).chunk(heads)):
        expected = matrices[head] @ windows[..., lanes] + biases[head][:, None]
        assert torch.allclose(found[..., lanes], expected, rtol=0, atol=1e-12)


def test_swin_mlp_shifts_its_windows_over_zeros():
    """Windows of 4 shifted by 2 on a map of 8: the corners hold 2 x 2 tokens of the map."""
    maps = torch.arange(1.0, 65.0).view(1, 8, 8, 1)
    windows = cut_windows(maps, 4, 2, cyclic=False)
    assert windows.shape == (1, 9, 16, 1)
    assert windows[0, 0, :, 0].view(4, 4).tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 1, 2],
        [0, 0, 9, 10],
    ]
    assert windows[0, 4, 0, 0] == maps[0, 2, 2, 0]
    assert windows[0, 8, :, 0].view(4, 4)[:2, :2].tolist() == [[55, 56], [63, 64]]
    assert (windows[0, 8, :, 0].view(4, 4)[2:] == 0).all()


@pytest.mark.parametrize("window", [3, 4, 7])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 13), (2, 3), (14, 7)])
def test_cut_windows_paste_back_to_the_same_map(window, shifted, cyclic, height, width):
    maps = drawn(2, height, width, 3)
    shift = window // 2 if shifted else 0
    windows = cut_windows(maps, window, shift, cyclic)
    assert torch.equal(paste_windows(windows, window, shift, cyclic, height, width), maps)
    kept = windows.abs().sum().item()
    assert kept == pytest.approx(maps.abs().sum().item())  # the rest of the windows is zeros


def test_swin_mlp_at_a_published_shift_of_odd_windows():
    assert cut_windows(drawn(1, 14, 14, 1), 7, 3, cyclic=False).shape == (1, 9, 49, 1)


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_a_swin_mlp_block_is_its_definition_token_by_token(shift):
    """Windows of 4, the first ``4 - shift`` outside the map, where there are zeros."""
    block = Block(tiny_shape(family="mlp"), 1, 0.0).double()
    for parameter in block.parameters():
        parameter.detach().copy_(drawn(*parameter.shape))
    side, channels, heads = 8, 24, 2
    x = drawn(1, side, side, channels, seed=1)
    normed = block.norm1(x)[0]
    weight = block.spatial_mlp.weight.view(heads, 16, 16)
    bias = block.spatial_mlp.bias.view(heads, 16)
    mixed = torch.zeros_like(normed)
    for row, column in torch.cartesian_prod(torch.arange(side), torch.arange(side)).tolist():
        top, left = (place - (place + 4 - shift) % 4 for place in (row, column))
        own = (row - top) * 4 + column - left
        for head, lanes in enumerate(torch.arange(channels).chunk(heads)):
            mixed[row, column, lanes] += bias[head, own]
            for other in range(16):
                r, c = top + other // 4, left + other % 4
                if 0 <= r < side and 0 <= c < side:
                    mixed[row, column, lanes] += weight[head, own, other] * normed[r, c, lanes]
    expected = x + mixed
    expected = expected + block.mlp(block.norm2(expected))
    assert torch.allclose(block(x, 4, shift, None, None), expected, rtol=0, atol=1e-10)


def test_huge_and_giant_normalise_the_residual_stream_every_six_blocks():
    shape = tiny_shape(family="v2")
    plain, normed = (Block(shape, 0, 0.0, extra_norm=extra).double() for extra in (False, True))
    normed.load_state_dict(plain.state_dict(), strict=False)
    x = drawn(1, 4, 4, 12)
    expected = F.layer_norm(plain(x, 4, 0, None, None), (12,))
    assert torch.allclose(normed(x, 4, 0, None, None), expected, rtol=0, atol=1e-12)
