"""Official Swin parameter names to those of transformers 5, for tests that compare the two."""

import re

from torch import Tensor

V1_RENAMES = [
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.(relative_position_bias)_table$", r".attention.\1.\1_table"),
]
V2_RENAMES = [
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.q_bias$", ".attention.self.query.bias"),
    (r"\.attn\.v_bias$", ".attention.self.value.bias"),
    (r"\.attn\.logit_scale$", ".attention.self.logit_scale"),
    (r"\.attn\.cpb_mlp\.", ".attention.self.continuous_position_bias_mlp."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
SHARED_RENAMES = [
    (r"^patch_embed\.proj\.", "{model}.embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "{model}.embeddings.norm."),
    (r"^layers\.", "{model}.encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"^norm\.", "{model}.layernorm."),
    (r"^head\.", "classifier."),
]
QKV = {
    "v1": ("q_proj", "k_proj", "v_proj"),
    "v2": ("self.query", "self.key", "self.value"),
}


def to_transformers(tensors: dict[str, Tensor], family: str = "v1") -> dict[str, Tensor]:
    """Rename parameters (or their gradients) and split the joint qkv."""
    model = {"v1": "swin", "v2": "swinv2"}[family]
    renames = {"v1": V1_RENAMES, "v2": V2_RENAMES}[family] + SHARED_RENAMES
    renamed = {}
    for name, tensor in tensors.items():
        block, joint, kind = name.partition(".attn.qkv.")
        if joint:
            for part, piece in zip(QKV[family], tensor.chunk(3), strict=True):
                renamed[f"{model}.encoder.{block}.attention.{part}.{kind}"] = piece
            continue
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement.replace("{model}", model), name)
        renamed[name] = tensor
    return renamed
