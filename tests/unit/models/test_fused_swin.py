"""Whole networks with the kernels, against themselves without: outputs and every gradient."""

import pytest
import torch
from tiny_swin import randomized
from torch import Tensor

from pretrain.models.build import use_kernels
from pretrain.models.swin import Block, Swin
from pretrain.models.variants import Shape

pytest.importorskip("triton", reason="triton has no wheel for this machine")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def small_shape(family: str, extra_norm_every: int = 0) -> Shape:
    return Shape(
        embed_dim=12, depths=(2, 1, 1, 1), heads=(1, 2, 1, 1), image_size=32, window_size=4,
        num_classes=5, drop_path=0.3, family=family, extra_norm_every=extra_norm_every,
    )  # fmt: skip


def step(model: Swin, side: int, precision: str = "fp32") -> dict[str, Tensor]:
    """Logits and every gradient of a training step, drop path on."""
    images = torch.randn(2, 3, side, side + 4, generator=torch.Generator().manual_seed(3))
    model.train().zero_grad()
    torch.manual_seed(5)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(images.to(DEVICE))
    logits.float().square().sum().backward()
    return {"logits": logits.detach()} | {n: p.grad for n, p in model.named_parameters()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], fraction: float) -> None:
    # Some gradients are zero but for rounding.
    floor = 1e-6 * max(plain.float().abs().max() for plain in expected.values())
    for name, plain in expected.items():
        difference = (found[name].float() - plain.float()).abs().max()
        assert difference <= fraction * plain.float().abs().max() + floor, name


@pytest.mark.parametrize("family", ["v1", "v2", pytest.param("mlp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("attention", "layer_norm"),
    [
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
        (True, True),
    ],
)
def test_kernels_change_no_output_and_no_gradient(family, attention, layer_norm):
    model = randomized(Swin(small_shape(family, extra_norm_every=2))).to(DEVICE)
    side = 32 if family == "mlp" else 20  # maps that windows do not tile
    expected = step(model, side)
    names = list(model.state_dict())
    use_kernels(model, attention=attention, layer_norm=layer_norm)
    assert list(model.state_dict()) == names
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert all(block.fused_norms == layer_norm for block in blocks)
    assert family == "mlp" or all(block.attn.fused == attention for block in blocks)
    assert_close(step(model, side), expected, 2e-4)
    use_kernels(model, attention=False, layer_norm=False)
    again = step(model, side)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", ["v1", "v2"])
def test_kernels_differ_by_rounding_under_autocast(family):
    model = randomized(Swin(small_shape(family))).to(DEVICE)
    exact = step(model, 32)
    plain = step(model, 32, "bf16")
    use_kernels(model, attention=True, layer_norm=True)
    fused = step(model, 32, "bf16")
    floor = 1e-4 * max(gradient.norm() for gradient in exact.values())
    for name, expected in exact.items():
        errors = [(found[name].float() - expected).norm() for found in (fused, plain)]
        assert fused[name].dtype == plain[name].dtype
        assert errors[0] <= 2 * errors[1] + 1e-2 * expected.norm() + floor, name


@pytest.mark.parametrize(
    "recompute",
    [
        "selective_attention",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("selective_mlp", "full", "full_offload")
        ),
    ],
)
def test_computing_again_changes_no_bit(recompute):
    for family in ("v1", "v2"):
        results = []
        for kind in ("none", recompute):
            model = randomized(Swin(small_shape(family), (kind,) * 4)).to(DEVICE)
            use_kernels(model, attention=True, layer_norm=True)
            results.append(step(model, 16))
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["v1", "v2"])
def test_compiled_blocks_keep_the_kernels_in_one_graph(family):
    model = randomized(Swin(small_shape(family))).to(DEVICE)
    use_kernels(model, attention=True, layer_norm=True)
    expected = step(model, 16)
    torch._dynamo.reset()
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(backend="aot_eager", fullgraph=True)
    assert_close(step(model, 16), expected, 1e-5)


def test_tiny_windows_of_small_images_work():
    model = randomized(Swin(small_shape("v1"))).to(DEVICE)
    expected = step(model, 5)
    use_kernels(model, attention=True, layer_norm=True)
    assert_close(step(model, 5), expected, 2e-4)
