"""Official Swin parameter names to those of transformers 5, for tests that compare the two."""

import re

from torch import Tensor

RENAMES = [
    (r"^patch_embed\.proj\.", "swin.embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "swin.embeddings.norm."),
    (r"^layers\.", "swin.encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.(relative_position_bias)_table$", r".attention.\1.\1_table"),
    (r"^norm\.", "swin.layernorm."),
    (r"^head\.", "classifier."),
]


def to_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename parameters (or their gradients) and split the joint qkv."""
    renamed = {}
    for name, tensor in tensors.items():
        block, joint, kind = name.partition(".attn.qkv.")
        if joint:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"swin.encoder.{block}.attention.{part}_proj.{kind}"] = piece
            continue
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
