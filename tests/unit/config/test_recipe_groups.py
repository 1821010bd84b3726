"""Every recipe's parameter groups, against the structure of the published networks."""

import pytest
import torch
from recipes import load

from pretrain.engine.param_groups import parameter_groups
from pretrain.objective import objective_of

DEPTHS = {"t": (2, 2, 6, 2), "s": (2, 2, 18, 2), "b": (2, 2, 18, 2), "l": (2, 2, 18, 2)}
DECAYED_IN_BLOCK = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
UNDECAYED_IN_BLOCK_V2 = (
    "attn.logit_scale", "attn.cpb_mlp.0.weight", "attn.cpb_mlp.0.bias", "attn.cpb_mlp.2.weight",
    "attn.q_bias", "attn.v_bias", "attn.proj.bias", "norm1.weight", "norm1.bias", "norm2.weight",
    "norm2.bias", "mlp.fc1.bias", "mlp.fc2.bias",
)  # fmt: skip
DECAYED_IN_BLOCK_MLP = ("spatial_mlp.weight", "mlp.fc1.weight", "mlp.fc2.weight")
UNDECAYED_IN_BLOCK_MLP = (
    "spatial_mlp.bias", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "mlp.fc1.bias",
    "mlp.fc2.bias",
)  # fmt: skip
UNDECAYED_IN_BLOCK = (
    "norm1.weight", "norm1.bias", "attn.relative_position_bias_table", "attn.qkv.bias",
    "attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.bias", "mlp.fc2.bias",
)  # fmt: skip


def expected_groups(variant: str) -> dict[str, tuple[bool, int]]:
    """Return, by name, whether a parameter decays and its layer, from the published structure."""
    family, _, size = variant.replace("swin_mlp", "mlp").partition("_")
    depths = DEPTHS[size[0]]
    decayed, undecayed = {
        "swin": (DECAYED_IN_BLOCK, UNDECAYED_IN_BLOCK),
        "swinv2": (DECAYED_IN_BLOCK, UNDECAYED_IN_BLOCK_V2),
        "mlp": (DECAYED_IN_BLOCK_MLP, UNDECAYED_IN_BLOCK_MLP),
    }[family]
    top = sum(depths) + 1
    found = {"patch_embed.proj.weight": (True, 0), "head.weight": (True, top)}
    found |= {f"patch_embed.{name}": (False, 0) for name in ("proj.bias", "norm.weight")}
    found |= {"patch_embed.norm.bias": (False, 0), "head.bias": (False, top)}
    found |= {"norm.weight": (False, top), "norm.bias": (False, top)}
    layer = 0
    for stage, blocks in enumerate(depths):
        for block in range(blocks):
            layer += 1
            prefix = f"layers.{stage}.blocks.{block}."
            found |= {prefix + name: (True, layer) for name in decayed}
            found |= {prefix + name: (False, layer) for name in undecayed}
        if stage < 3:
            prefix = f"layers.{stage}.downsample."
            found[prefix + "reduction.weight"] = (True, layer)
            found |= {prefix + name: (False, layer) for name in ("norm.weight", "norm.bias")}
    return found


def with_a_decoder(structure: dict[str, tuple[bool, int]]) -> dict[str, tuple[bool, int]]:
    """Return the structure of masked pre-training: no head, and a token that does not decay."""
    top = max(layer for _, layer in structure.values())
    encoder = {
        f"encoder.{name}": value
        for name, value in structure.items()
        if not name.startswith("head.")
    }
    decoder = {"decoder.weight": (True, top), "decoder.bias": (False, top)}
    return encoder | decoder | {"mask_token": (False, 0)}


@pytest.mark.parametrize(
    ("name", "preset", "layer_decay", "weight_decay", "groups", "scalars"),
    [
        ("swin_t_22k", "repository", 1.0, 0.05, 2, 44_315_083),
        ("swin_s_22k", "paper", 1.0, 0.01, 2, 65_632_987),
        ("swin_b_22k", "repository", 1.0, 0.05, 2, 109_130_249),
        ("swin_l_22k", "repository", 1.0, 0.05, 2, 228_565_093),
        ("swin_t_1k", "repository", 1.0, 0.05, 2, 28_288_354),
        ("swin_t_22k_to_1k_224", "modern", 0.8, 1e-8, 28, 28_288_354),
        ("swin_l_22k_to_1k_384", "repository", 1.0, 1e-8, 2, 196_735_516),
        ("swin_l_22k_to_1k_384", "modern", 0.9, 1e-8, 52, 196_735_516),
        ("swin_b_simmim", "repository", 1.0, 0.05, 2, 89_874_104),
        ("swin_b_simmim_to_1k", "repository", 0.8, 0.05, 52, 87_768_224),
        ("swin_t_c24_1k", "repository", 1.0, 0.05, 2, 28_306_432),
        ("swin_b_1k_to_384", "modern", 0.83, 1e-8, 52, 87_903_584),
        ("swin_mlp_t_c12_1k", "repository", 1.0, 0.05, 2, 21_152_072),
        ("swin_mlp_b_1k", "paper", 1.0, 0.05, 2, 60_659_416),
        ("swinv2_s_1k_window16", "repository", 1.0, 0.05, 2, 49_728_418),
        ("swinv2_b_22k", "repository", 1.0, 0.1, 2, 109_280_841),
        ("swinv2_b_22k_to_1k_256", "repository", 1.0, 1e-8, 2, 87_918_816),
        ("swinv2_l_22k_to_1k_384", "modern", 0.9, 1e-8, 52, 196_739_932),
    ],
)
def test_parameter_groups(name, preset, layer_decay, weight_decay, groups, scalars):
    config, _ = load(name, preset)
    with torch.device("meta"):
        model = objective_of(config).model
    parameters = dict(model.named_parameters())
    found = parameter_groups(
        parameters,
        config.optim.weight_decay,
        model.no_weight_decay_names(),
        config.optim.layer_decay,
        model.layer_depths(),
    )
    names = {id(parameter): name for name, parameter in parameters.items()}
    of_parameter = {
        names[id(parameter)]: (group["weight_decay"], group["lr_scale"])
        for group in found
        for parameter in group["params"]
    }
    structure = expected_groups(config.model.variant)
    if name == "swin_b_simmim":
        structure = with_a_decoder(structure)
    top = max(layer for _, layer in structure.values())
    assert of_parameter == {
        name: (weight_decay if decays else 0.0, pytest.approx(layer_decay ** (top - layer)))
        for name, (decays, layer) in structure.items()
    }
    assert len(found) == groups
    assert sum(len(group["params"]) for group in found) == len(structure)
    assert sum(p.numel() for group in found for p in group["params"]) == scalars
