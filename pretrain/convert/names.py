"""One table of the names that each layout gives to a Swin's tensors. No torch.

A row says how the same values are called everywhere; official names lead. What a row cannot say
with names alone: three names against one mean thirds along the first axis (q, k, v), a missing
third is zeros, and mmdetection orders the channels of patch merging as `torch.nn.Unfold` does.

``transformers5`` is what transformers 5 calls them in memory: it is read, never written, since its
files keep the names of version 4. Sources: the official ``models/swin_transformer*.py``, timm's
``swin_transformer*.py``, transformers' ``conversion_mapping.py``, torchvision's
``swin_transformer.py``, mmdetection's ``backbones/swin.py``; mmpretrain's classifier for norm and
head, and its ``swin_transformer_v2.py`` for V2, which mmdetection has not.
"""

from functools import cache
from typing import Literal, NamedTuple

Family = Literal["swin", "swinv2"]
Layout = Literal["official", "timm", "huggingface", "transformers5", "torchvision", "mmdetection"]
LAYOUTS: tuple[Layout, ...] = (
    "official",
    "timm",
    "huggingface",
    "transformers5",
    "torchvision",
    "mmdetection",
)
"""Columns of the tables below, in their order."""

STAGES = 4
DEPTH_MAX = 64
"""Blocks of a stage that names are made for; Swin V2-G has 42."""

DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask")
"""Last parts of the names of buffers that follow from the shape; some layouts store them."""

Parts = tuple[str | None, ...]

_SCOPES: dict[str, tuple[str, ...]] = {
    "patch": (
        "patch_embed.",
        "patch_embed.",
        "{hub}.embeddings.",
        "{hub}.embeddings.",
        "features.0.",
        "backbone.patch_embed.",
    ),
    "block": (
        "layers.{stage}.blocks.{block}.",
        "layers.{stage}.blocks.{block}.",
        "{hub}.encoder.layers.{stage}.blocks.{block}.",
        "{hub}.encoder.layers.{stage}.blocks.{block}.",
        "features.{odd}.{block}.",
        "backbone.stages.{stage}.blocks.{block}.",
    ),
    # timm has merged at the start of the next stage since 0.9; before, it had the official names.
    "merge": (
        "layers.{stage}.downsample.",
        "layers.{after}.downsample.",
        "{hub}.encoder.layers.{stage}.downsample.",
        "{hub}.encoder.layers.{stage}.downsample.",
        "features.{even}.",
        "backbone.stages.{stage}.downsample.",
    ),
    "whole": ("", "", "", "", "", ""),
}
_SCOPES_V2: dict[tuple[str, int], str] = {
    ("merge", LAYOUTS.index("mmdetection")): "backbone.stages.{after}.downsample.",
}
"""Where V2 differs: mmpretrain merges at the start of the next stage there."""

_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
_QKV5 = ("attention.q_proj", "attention.k_proj", "attention.v_proj")

_Row = tuple[str, tuple[str | Parts | None, ...]]

_SHARED: tuple[_Row, ...] = (
    (
        "patch",
        (
            "proj.*",
            "proj.*",
            "patch_embeddings.projection.*",
            "patch_embeddings.projection.*",
            "0.*",
            "projection.*",
        ),
    ),
    ("patch", ("norm.*", "norm.*", "norm.*", "norm.*", "2.*", "norm.*")),
    (
        "block",
        ("norm1.*", "norm1.*", "layernorm_before.*", "layernorm_before.*", "norm1.*", "norm1.*"),
    ),
    (
        "block",
        ("norm2.*", "norm2.*", "layernorm_after.*", "layernorm_after.*", "norm2.*", "norm2.*"),
    ),
    (
        "block",
        (
            "attn.qkv.weight",
            "attn.qkv.weight",
            tuple(f"{name}.weight" for name in _QKV),
            tuple(f"{name}.weight" for name in _QKV5),
            "attn.qkv.weight",
            "attn.w_msa.qkv.weight",
        ),
    ),
    (
        "block",
        (
            "attn.proj.*",
            "attn.proj.*",
            "attention.output.dense.*",
            "attention.o_proj.*",
            "attn.proj.*",
            "attn.w_msa.proj.*",
        ),
    ),
    (
        "block",
        (
            "mlp.fc1.*",
            "mlp.fc1.*",
            "intermediate.dense.*",
            "mlp.fc1.*",
            "mlp.0.*",
            "ffn.layers.0.0.*",
        ),
    ),
    (
        "block",
        ("mlp.fc2.*", "mlp.fc2.*", "output.dense.*", "mlp.fc2.*", "mlp.3.*", "ffn.layers.1.*"),
    ),
    ("merge", ("reduction.weight",) * 6),
    ("merge", ("norm.*",) * 6),
    (
        "whole",
        (
            "norm.*",
            "norm.*",
            "{hub}.layernorm.*",
            "{hub}.layernorm.*",
            "norm.*",
            "backbone.norm3.*",
        ),
    ),
    ("whole", ("head.*", "head.fc.*", "classifier.*", "classifier.*", "head.*", "head.fc.*")),
)
"""``*`` stands for ``weight`` and ``bias``."""

_V1: tuple[_Row, ...] = (
    (
        "block",
        (
            "attn.qkv.bias",
            "attn.qkv.bias",
            tuple(f"{name}.bias" for name in _QKV),
            tuple(f"{name}.bias" for name in _QKV5),
            "attn.qkv.bias",
            "attn.w_msa.qkv.bias",
        ),
    ),
    (
        "block",
        (
            "attn.relative_position_bias_table",
            "attn.relative_position_bias_table",
            "attention.self.relative_position_bias_table",
            "attention.relative_position_bias.relative_position_bias_table",
            "attn.relative_position_bias_table",
            "attn.w_msa.relative_position_bias_table",
        ),
    ),
)

_V2: tuple[_Row, ...] = (
    (
        "block",
        (
            ("attn.q_bias", None, "attn.v_bias"),
            ("attn.q_bias", None, "attn.v_bias"),
            ("attention.self.query.bias", None, "attention.self.value.bias"),
            None,
            "attn.qkv.bias",
            ("attn.w_msa.q_bias", None, "attn.w_msa.v_bias"),
        ),
    ),
    (
        "block",
        (
            "attn.logit_scale",
            "attn.logit_scale",
            "attention.self.logit_scale",
            None,
            "attn.logit_scale",
            "attn.w_msa.logit_scale",
        ),
    ),
    (
        "block",
        (
            "attn.cpb_mlp.0.*",
            "attn.cpb_mlp.0.*",
            "attention.self.continuous_position_bias_mlp.0.*",
            None,
            "attn.cpb_mlp.0.*",
            "attn.w_msa.cpb_mlp.0.*",
        ),
    ),
    (
        "block",
        (
            "attn.cpb_mlp.2.weight",
            "attn.cpb_mlp.2.weight",
            "attention.self.continuous_position_bias_mlp.2.weight",
            None,
            "attn.cpb_mlp.2.weight",
            "attn.w_msa.cpb_mlp.2.weight",
        ),
    ),
)

INDEX_NAMES: dict[Layout, str] = {
    "official": "attn.relative_position_index",
    "huggingface": "attention.self.relative_position_index",
    "torchvision": "attn.relative_position_index",
    "mmdetection": "attn.w_msa.relative_position_index",
}
"""In a block's scope, where a layout stores which row of the bias table each pair of tokens has."""


class Rule(NamedTuple):
    """The same values under both names.

    Attributes:
        official: one name, or three for q, k and v; None for a third that is zeros.
        other: likewise, in the other layout.
        unfolded: whether the other layout orders their input channels as `torch.nn.Unfold` does.
    """

    official: Parts
    other: Parts
    unfolded: bool


@cache
def rules(layout: Layout, family: Family) -> tuple[Rule, ...]:
    """Every tensor that a network of the family can have, up to `DEPTH_MAX` blocks a stage.

    Empty where the layout has no place for the family.
    """
    rows = _SHARED + (_V1 if family == "swin" else _V2)
    column = LAYOUTS.index(layout)
    if any(row[column] is None for _, row in rows):
        return ()
    found = []
    for scope, row in rows:
        official, other = _parts(row[0]), _parts(row[column])
        there = _SCOPES[scope][column]
        if family == "swinv2":
            there = _SCOPES_V2.get((scope, column), there)
        heads = _SCOPES[scope][0], there
        # V2's norm comes after the reduction, whose outputs have one order everywhere.
        merges = layout == "mmdetection" and scope == "merge"
        unfolded = merges and (family == "swin" or "reduction" in str(row[0]))
        for numbers in _numbers(scope):
            for leaf in ("weight", "bias") if "*" in str(row[0]) else ("",):
                sides = [
                    tuple(
                        part and (head + part).format(hub=family, **numbers).replace("*", leaf)
                        for part in parts
                    )
                    for head, parts in zip(heads, (official, other), strict=True)
                ]
                found.append(Rule(sides[0], sides[1], unfolded))
    return tuple(found)


def block_prefix(layout: Layout, family: Family, stage: int, block: int) -> str:
    """What the names of a block's tensors begin with."""
    scope = _SCOPES["block"][LAYOUTS.index(layout)]
    return scope.format(hub=family, **_number(stage, block))


def is_derived(name: str) -> bool:
    """Whether a tensor follows from the shape, so that it is made anew and never copied."""
    return name.rpartition(".")[2] in DERIVED


def _parts(entry: str | Parts | None) -> Parts:
    return entry if isinstance(entry, tuple) else (entry,)


def _number(stage: int, block: int) -> dict[str, int]:
    return {
        "stage": stage,
        "block": block,
        "after": stage + 1,
        "odd": 2 * stage + 1,
        "even": 2 * stage + 2,
    }


def _numbers(scope: str) -> list[dict[str, int]]:
    if scope == "block":
        return [_number(stage, block) for stage in range(STAGES) for block in range(DEPTH_MAX)]
    return [_number(stage, 0) for stage in (range(STAGES - 1) if scope == "merge" else (0,))]
