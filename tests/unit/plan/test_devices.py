"""Devices are told apart by the names that torch gives them."""

import re

import pytest

from pretrain.plan.cost import ASSUMED_FLOP_PER_SECOND
from pretrain.plan.devices import PEAKS, images_per_second_at_peak, peak_flop_per_second


@pytest.mark.parametrize(
    ("name", "bf16", "fp16", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 312, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 312, 19.5),
        ("NVIDIA A10", 125, 125, 31.2),
        ("NVIDIA H100 80GB HBM3", 989.4, 989.4, 67),
        ("NVIDIA H100 PCIe", 756, 756, 51),
        ("NVIDIA H100 NVL", 835, 835, 60),
        ("NVIDIA H200", 989.4, 989.4, 67),
        ("NVIDIA GH200 480GB", 989.4, 989.4, 67),
        ("NVIDIA B200", 2250, 2250, 75),
        ("Tesla V100-SXM2-32GB", None, 125, 15.7),
        ("Tesla V100-PCIE-16GB", None, 112, 14),
        ("Tesla T4", None, 65, 8.1),
        ("NVIDIA GeForce RTX 3090", 71, 71, 35.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 165.2, 82.6),
        ("NVIDIA L4", 121, 121, 30.3),
        ("NVIDIA L40S", 362.05, 362.05, 91.6),
        ("AMD Instinct MI300X", 1307.4, 1307.4, 163.4),
    ],
)
def test_known_devices_have_their_published_peak(name, bf16, fp16, fp32):
    tera = {"bf16": bf16, "fp16": fp16, "fp32": fp32}
    for precision, expected in tera.items():
        found = peak_flop_per_second(name, precision)
        assert found == (None if expected is None else pytest.approx(expected * 1e12))


@pytest.mark.parametrize(
    "name",
    [
        "CPU",
        "",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A10G",
        "NVIDIA A100X",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA B2000",
        "GRID A100-40C",
    ],
)
def test_what_is_not_known_is_not_guessed(name):
    for precision in ("bf16", "fp16", "fp32"):
        assert peak_flop_per_second(name, precision) is None
    assert images_per_second_at_peak(name, "fp16", 10**9) is None


def test_every_entry_can_be_found():
    """None is hidden behind a more general one before it."""
    for peak in PEAKS:
        name = re.sub(r"\[(.).*?\]", r"\1", peak.pattern)
        assert peak_flop_per_second(name, "fp16") == pytest.approx(peak.fp16 * 1e12)


def test_the_rate_at_the_peak_counts_six_operations_per_multiply_add():
    # Swin-T: 4.5 GMAC forward, 13.5 GMAC with the backward pass, 27 GFLOP.
    rate = images_per_second_at_peak("NVIDIA A100-SXM4-40GB", "bf16", 4_500_000_000)
    assert rate == pytest.approx(312e12 / 27e9)


def test_the_plan_assumes_a_share_of_the_same_table():
    assert ASSUMED_FLOP_PER_SECOND["cuda"] == pytest.approx(109.2e12)
