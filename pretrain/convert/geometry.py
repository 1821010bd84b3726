"""The model that weights belong to, read from their names and shapes; and whether all is there."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig
from pretrain.convert.hints import Hints
from pretrain.convert.names import STAGES, Family
from pretrain.errors import ConfigError, ModelError
from pretrain.models.build import build
from pretrain.models.variants import VARIANTS, shape_of, stage_maps

_STRIDE = 32
"""Image pixels for a token of the last stage's map."""
SHOWN_NAMES = 6

_OTHERS = (
    ("cls_token", "a vision transformer (ViT or DeiT)"),
    ("spatial_mlp", "a Swin-MLP"),
    ("downsample_layers.0.0.weight", "a ConvNeXt"),
    ("stem.0.weight", "a ConvNeXt or another convolutional network"),
    ("layer1.0.conv1.weight", "a ResNet"),
    ("features.0.0.weight", "a convolutional network of torchvision"),
    ("conv_stem.weight", "an EfficientNet"),
    ("text_model", "a CLIP"),
    ("transformer.h.0", "a language model"),
    ("model.layers.0.self_attn", "a language model"),
    ("exp_avg", "an optimizer's state"),
)
_LEADING: dict[Family, str] = {
    "swin": "layers.{}.blocks.0.attn.relative_position_bias_table",
    "swinv2": "layers.{}.blocks.0.attn.logit_scale",
}
"""Of each stage, the tensor that shows its heads; in V1 its window too."""


def other_architecture(names: Sequence[str]) -> str:
    """Say whose names these are, as far as they show it."""
    for marker, what in _OTHERS:
        if any(name == marker or marker in name for name in names):
            return what
    return f"an unknown network whose tensors are called {_some(sorted(names), 3)}"


def infer(weights: Mapping[str, Tensor], family: Family, hints: Hints, where: str) -> ModelConfig:
    """Find the config of the network that the weights are of.

    Args:
        weights: by official names.
        family: which network.
        hints: what the source says besides; what contradicts the weights is refused.
        where: what to call the source in messages.

    Raises:
        ModelError: the weights are of no Swin, of none that is supported, or contradict the hints.
    """
    depths = _depths(weights)
    leading = _LEADING[family]
    needed = ["patch_embed.proj.weight", *(leading.format(stage) for stage in range(STAGES))]
    absent = [name for name in needed if name not in weights or weights[name].ndim < 2]
    if absent or 0 in depths:
        raise ModelError(f"{where}: not the whole of a Swin: without {_some(absent, 3)}")
    shown = [weights[leading.format(stage)] for stage in range(STAGES)]
    windows = [_window(table, where) for table in shown] if family == "swin" else None
    embed_dim = weights["patch_embed.proj.weight"].shape[0]
    heads = tuple(value.shape[1 if family == "swin" else 0] for value in shown)
    _check_hints(hints, depths, embed_dim, heads, where)
    head = weights.get("head.weight")
    model = _named(
        family,
        (embed_dim, depths, heads),
        {
            **_sizes(windows, hints, where),
            "num_classes": head.shape[0] if head is not None and head.ndim else 1,
            "drop_path": hints.drop_path or 0.0,
        },
        where,
    )
    actual = [stage.window for stage in stage_maps(shape_of(model))]
    if windows is None:
        return _with_trained_windows(model, actual, hints)
    if actual != windows:
        raise ModelError(
            f"{where}: the position tables are of windows of {_numbers(windows)} tokens, but "
            f"{model.image_size} pixels and window {model.window_size} make them "
            f"{_numbers(actual)}; give the size trained on (--image-size); training with another "
            "window starts from weights converted as they are (init_from resizes the tables)"
        )
    return model


def check_weights(
    weights: Mapping[str, Tensor], model: ModelConfig, unknown: Sequence[str], where: str
) -> None:
    """Check that the weights are all that the model has, and sound; all faults, by kind.

    A head may be absent as a whole.

    Raises:
        ModelError: names missing, unknown, of another shape or type, or not finite.
    """
    expected = expected_shapes(model)
    if "head.weight" not in weights and "head.bias" not in weights:
        expected = {name: shape for name, shape in expected.items() if "head." not in name}
    shared = [name for name in expected if name in weights]
    kinds = {
        "missing": [name for name in expected if name not in weights],
        "unknown": [*unknown, *(name for name in weights if name not in expected)],
        "of another shape": [
            f"{name} (got {tuple(weights[name].shape)}, expected {expected[name]})"
            for name in shared
            if tuple(weights[name].shape) != expected[name]
        ],
        "of another type than floating point of 16 to 64 bits": [
            f"{name} ({str(weights[name].dtype).removeprefix('torch.')})"
            for name in shared
            if not _is_weight_type(weights[name])
        ],
        "not finite": [
            name
            for name in shared
            if _is_weight_type(weights[name]) and not bool(torch.isfinite(weights[name]).all())
        ],
    }
    found = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if found:
        text = "; ".join(found)
        if any("absolute_pos_embed" in name for name in kinds["unknown"]):
            text += "; absolute position embeddings are not supported"
        raise ModelError(f"{where}: not the weights of this model: {text}")


def expected_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by official name; nothing is allocated."""
    with torch.device("meta"):
        network = build(model)
    return {name: tuple(value.shape) for name, value in network.named_parameters()}


def _is_weight_type(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _depths(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    blocks: list[set[int]] = [set() for _ in range(STAGES)]
    for name in weights:
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "blocks":
            blocks[int(parts[1])].add(int(parts[3]))
    return tuple(max(found, default=-1) + 1 for found in blocks)


def _window(table: Tensor, where: str) -> int:
    side = math.isqrt(table.shape[0])
    if side**2 != table.shape[0] or side % 2 == 0:
        raise ModelError(
            f"{where}: a position bias table of {table.shape[0]} rows; expected (2M-1)² of a window"
        )
    return (side + 1) // 2


def _sizes(windows: Sequence[int] | None, hints: Hints, where: str) -> dict[str, int]:
    """Window and image size; without a word, the image whose last map is one window.

    That is how V1 was published. V2's weights show no window, and one window serves several images.
    """
    if windows is not None:
        return {
            "image_size": hints.image_size or _STRIDE * windows[-1],
            "window_size": hints.window_size or max(windows),
        }
    if hints.window_size is None or hints.image_size is None:
        raise ModelError(
            f"{where}: a Swin V2, whose weights do not show its window and image size; "
            "give both: --window TOKENS --image-size PIXELS, or the directory with its config.json"
        )
    return {"image_size": hints.image_size, "window_size": hints.window_size}


def _with_trained_windows(model: ModelConfig, actual: Sequence[int], hints: Hints) -> ModelConfig:
    """V2's windows of an earlier training, 0 where they are the model's own."""
    said = hints.trained_windows or (0,) * STAGES
    trained = [0 if known == window else known for known, window in zip(said, actual, strict=True)]
    return model.model_copy(update={"pretrained_window_sizes": tuple(trained)})


def _named(
    family: Family,
    shape: tuple[int, tuple[int, ...], tuple[int, ...]],
    rest: Mapping[str, object],
    where: str,
) -> ModelConfig:
    """The config by its variant's name, or the smallest one's with its own shape."""
    of_family = {
        name: (row.embed_dim, row.depths, row.heads)
        for name, row in VARIANTS.items()
        if row.family == ("v1" if family == "swin" else "v2") and not row.extra_norm_every
    }
    same = [name for name, row in of_family.items() if row == shape]
    own = {} if same else dict(zip(("embed_dim", "depths", "heads"), shape, strict=True))
    try:
        variant = (same or list(of_family))[0]
        model = ModelConfig.model_validate({"variant": variant, **own, **rest})
        shape_of(model)
    except (ConfigError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{where}: no model has these shapes ({reason})") from None
    return model


def _check_hints(
    hints: Hints,
    depths: tuple[int, ...],
    embed_dim: int,
    heads: tuple[int, ...],
    where: str,
) -> None:
    found = (
        ("depths", hints.depths, depths),
        ("embed_dim", hints.embed_dim, embed_dim),
        ("heads", hints.heads, heads),
    )
    for what, said, got in found:
        if said is not None and said != got:
            raise ModelError(
                f"{where}: {what}: the config beside the weights says {said}, they are of {got}; "
                "take the config that belongs to them, or convert the weights file alone"
            )


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)


def _some(names: Sequence[str], shown: int = SHOWN_NAMES) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
