"""Operations and bytes that `benchmarks/intensity.py` counts, against the plan's and by hand."""

import pytest
import torch
from intensity import Device, counted_parts, main
from intensity_count import Operator, count, without_storage

from pretrain.config.load import load_run
from pretrain.errors import ConfigError
from pretrain.models.build import use_kernels
from pretrain.models.cost import count_forward_macs
from pretrain.models.swin import Block
from pretrain.models.variants import Shape, shape_of

IMAGES = 32


def block_bytes(shift, kernels=False):
    """Bytes of a V1 block's forward pass for each element of a map much larger than its weights."""
    shape = Shape(96, (2, 2, 2, 2), (3, 6, 12, 24), 224, 7, 10)
    with without_storage():
        block = Block(shape, 0, 0.1).train()
        use_kernels(block, attention=kernels, layer_norm=kernels)
        maps = torch.empty(IMAGES, 56, 56, 96, requires_grad=True)
        mask = torch.empty(64, 49, 49) if shift else None
        scales = torch.empty(2, IMAGES, 1, 1, 1)
        operators = count(lambda x: block(x, 7, shift, mask, scales), maps)
    touched = sum(each.size_bytes for each in operators if not each.backward)
    return touched / (IMAGES * 56 * 56 * 96)


@pytest.mark.parametrize("kernels", [False, True])
def test_products_are_those_that_the_plan_counts(kernels):
    shape = shape_of(load_run("swin_t_22k").model)
    parts = counted_parts(shape, IMAGES, kernels=kernels)
    operators = [each for part in parts.values() for each in part]
    forward = sum(each.flop for each in operators if not each.backward)
    assert forward == 2 * IMAGES * count_forward_macs(shape)
    backward = sum(each.flop for each in operators if each.backward)
    assert 1.95 * forward < backward < 2.1 * forward  # no gradient of pixels; scores once more


def test_bytes_of_a_block_by_hand():
    """Each norm 4 + 4; the cut 8 in fp32; casts 2 x 6; qkv 2 + 6; attention 6 + 2; proj 2 + 2; the
    paste 4; MLP (2 + 8) + GELU 16 + (8 + 2); two branches, scaled 2 + 4, added 8 + 4: per element.
    """
    by_hand = 2 * 8 + 8 + 12 + 8 + 8 + 4 + 4 + 10 + 16 + 10 + 2 * 18
    assert block_bytes(shift=0) == pytest.approx(by_hand, rel=0.02)


def test_bytes_that_a_shift_adds_by_hand():
    """Rolls in two passes, 2 x 8 in fp32 and 2 x 4 back; q, k, v and the output copied, 4 each."""
    more = block_bytes(shift=3) - block_bytes(shift=0)
    assert more == pytest.approx(16 + 8 + 4 * 4, rel=0.15)  # and the mask, added to the bias


@pytest.mark.parametrize("shift", [0, 3])
def test_bytes_of_a_block_with_kernels_by_hand(shift):
    """Norm 4 + 2; qkv 2 + 6; attention 6 + 2; proj 2 + 2; residual and norm 4 + 2 + 4 + 2; MLP as
    above; residual 4 + 2 + 4. A shift costs nothing.
    """
    by_hand = 6 + 8 + 8 + 4 + 12 + 10 + 16 + 10 + 10
    assert block_bytes(shift, kernels=True) == pytest.approx(by_hand, rel=0.02)


def test_an_operator_takes_the_longer_of_its_two_times():
    device = Device(flop_per_second=1e3, bytes_per_second=10.0)
    assert device.seconds(Operator("products", 5000, 10, backward=False)) == 5
    assert device.seconds(Operator("casts", 0, 70, backward=False)) == 7


@pytest.mark.parametrize("name", ["swinv2_t_1k_window8", "swin_mlp_t_c24_1k"])
def test_other_families_are_printed(name, capsys):
    assert main(["--config", name, "--micro-batch", "2"]) == 0
    printed = capsys.readouterr().out
    assert "| stage 4, 768 channels |" in printed
    shares = [line for line in printed.splitlines() if line.startswith("| all |")]
    assert len(shares) == 1
    assert "100.0 %" in shares[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "NVIDIA H300"], "--device, --micro-batch: got 'NVIDIA H300', 128"),
        (["--config", "swin_b_simmim"], "expected a classifier"),
    ],
)
def test_what_it_cannot_count_is_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        main(arguments)
