import pytest
import torch
from tiny_swin import tiny_shape
from torch import nn

from pretrain.config.schema import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.build import build, compile_blocks
from pretrain.models.swin import Block, Swin

MODEL = ModelConfig(
    variant="swin_t", image_size=64, window_size=4, num_classes=50, embed_dim=48, heads=(3, 3, 6, 6)
)


def test_the_seed_fixes_the_weights():
    torch.manual_seed(1)
    first = build(MODEL).state_dict()
    torch.manual_seed(1)
    second = build(MODEL).state_dict()
    torch.manual_seed(2)
    other = build(MODEL).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_weights_are_initialised_as_the_recipe():
    torch.manual_seed(0)
    for name, parameter in build(MODEL).named_parameters():
        if "norm" in name:
            expected = 1.0 if name.endswith("weight") else 0.0
            assert (parameter == expected).all(), name
        elif name.startswith("patch_embed.proj"):
            bound = 1 / (3 * 4 * 4) ** 0.5  # torch's own convolution initialisation
            assert parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            error = 5 * 0.02 / (2 * parameter.numel()) ** 0.5  # five standard errors
            assert abs(parameter.std().item() - 0.02) < error, name
            assert abs(parameter.mean().item()) < 2 * error, name


def test_the_config_reaches_the_network():
    model = build(MODEL.model_copy(update={"drop_path": 0.3}), ("none", "full", "none", "full"))
    assert model.shape.drop_path == 0.3
    assert [stage.recompute for stage in model.layers] == ["none", "full", "none", "full"]
    assert model.head.weight.shape == (50, 8 * 48)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_heads_are_checked():
    with pytest.raises(ConfigError, match="heads"):
        build(MODEL.model_copy(update={"heads": (5, 6, 12, 24)}))


@pytest.mark.parametrize("variant", ["swinv2_t", "swin_mlp_t_c24"])
def test_the_other_families_are_initialised_as_published(variant):
    torch.manual_seed(0)
    heads = {"swinv2_t": (3, 3, 6, 6), "swin_mlp_t_c24": (2, 4, 8, 16)}[variant]
    model = build(MODEL.model_copy(update={"variant": variant, "heads": heads}))
    identity = variant == "swinv2_t"
    for name, parameter in model.named_parameters():
        if "blocks" in name and "norm" in name:
            one = name.endswith("weight") and not identity
            assert (parameter == float(one)).all(), name
        elif name.endswith("logit_scale"):
            assert torch.allclose(parameter.exp(), torch.tensor(10.0))
        elif name.endswith("bias") and "patch_embed" not in name:
            assert (parameter == 0).all(), name
        elif "norm" not in name and "patch_embed" not in name:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2), name


def test_a_new_v2_network_passes_the_residual_stream_through_its_blocks():
    model = build(MODEL.model_copy(update={"variant": "swinv2_t"}))
    block, x = model.layers[0].blocks[0], torch.randn(1, 16, 16, 48)
    assert torch.equal(block(x, 4, 0, None, None), x)


def test_every_block_is_compiled_and_nothing_else(monkeypatch):
    compiled = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, backend: compiled.append((type(self), backend))
    )
    model = nn.Sequential(Swin(tiny_shape()))
    names = list(model.state_dict())
    compile_blocks(model)
    assert compiled == [(Block, "inductor")] * 8
    assert list(model.state_dict()) == names
