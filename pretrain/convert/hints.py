"""What a source says about its model beside the weights: configs, metadata, derived buffers."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from pretrain.convert.names import INDEX_NAMES, STAGES, Family, Layout, block_prefix

_PATCH = 4
_COORDINATE_RANGE = 8.0
"""Of V2's log-spaced coordinates: the largest known offset before the logarithm."""
_TIMM_NAME = re.compile(r"window(?:\d+to)?(\d+)_(?:\d+to)?(\d+)")
_TIMM_WIDENED = re.compile(r"window(\d+)to")


class Hints(NamedTuple):
    """What a source says; None where it does not.

    Attributes:
        image_size: side of the image, pixels.
        window_size: window side, tokens, before maps smaller than it shrink it.
        drop_path: stochastic depth of the last block.
        depths: blocks of each stage.
        embed_dim: channels of the first stage.
        heads: of each stage.
        trained_windows: V2: window side of each stage that its position bias was trained with;
            0 for its own.
    """

    image_size: int | None = None
    window_size: int | None = None
    drop_path: float | None = None
    depths: tuple[int, ...] | None = None
    embed_dim: int | None = None
    heads: tuple[int, ...] | None = None
    trained_windows: tuple[int, ...] | None = None


def hints_of_hub(config: Mapping[str, Any]) -> Hints:
    """From the config.json of timm's or transformers' directory."""
    if "architecture" not in config:
        return Hints(
            image_size=_int(config.get("image_size")),
            window_size=_int(config.get("window_size")),
            drop_path=config.get("drop_path_rate"),
            depths=_ints(config.get("depths")),
            embed_dim=_int(config.get("embed_dim")),
            heads=_ints(config.get("num_heads")),
            trained_windows=_ints(config.get("pretrained_window_sizes")),
        )
    own = config.get("model_args") or {}
    size = _ints((config.get("pretrained_cfg") or {}).get("input_size")) or ()
    named = _hints_of_timm_name(str(config["architecture"]))
    return Hints(
        image_size=_int(own.get("img_size")) or (size[-1] if size else None),
        window_size=_int(own.get("window_size")) or named.window_size,
        depths=_ints(own.get("depths")),
        embed_dim=_int(own.get("embed_dim")),
        heads=_ints(own.get("num_heads")),
        trained_windows=_ints(own.get("pretrained_window_sizes")) or named.trained_windows,
    )


def _hints_of_timm_name(name: str) -> Hints:
    """From the name of one of timm's models, such as swinv2_base_window12to16_192to256."""
    named, widened = _TIMM_NAME.search(name), _TIMM_WIDENED.search(name)
    earlier = int(widened[1]) if widened else 0
    return Hints(
        image_size=int(named[2]) if named else None,
        window_size=int(named[1]) if named else None,
        # In the published widened models the last map was half the window.
        trained_windows=(earlier,) * 3 + (earlier // 2,) if earlier else None,
    )


def hints_of_objects(objects: Mapping[str, Any], metadata: Mapping[str, str]) -> Hints:
    """From beside the tensors of a file: the official config object, or what is written here.

    timm's checkpoints name the model under ``arch``.
    """
    size = metadata.get("image_size", objects.get("image_size"))
    hints = _hints_of_yacs(objects.get("config"))
    if hints == Hints() and isinstance(objects.get("arch"), str):
        hints = _hints_of_timm_name(objects["arch"])
    if isinstance(size, int | str) and str(size).isdigit():
        hints = hints._replace(image_size=int(size))
    return hints


def of_buffers(
    hints: Hints, tensors: Mapping[str, Tensor], layout: Layout, family: Family
) -> Hints:
    """Add what stored buffers show, where nothing else says it: image size and V2's windows."""
    if hints.image_size is None:
        hints = hints._replace(image_size=_size_of_masks(tensors))
    if family == "swin" or layout not in INDEX_NAMES:
        return hints
    windows, trained = [], []
    for stage in range(STAGES):
        name = block_prefix(layout, family, stage, 0) + INDEX_NAMES[layout]
        table = tensors.get(name.replace("position_index", "coords_table"))
        if table is None or table.ndim != 4:
            return hints
        window = (table.shape[1] + 1) // 2
        largest = float(table.abs().max()) if table.numel() else 0.0
        unit = 2 ** (largest * 3) - 1  # 8 (window - 1) / (trained window - 1)
        windows.append(window)
        trained.append(round(_COORDINATE_RANGE * (window - 1) / unit) + 1 if unit > 0 else window)
    return hints._replace(
        window_size=hints.window_size or max(windows),
        trained_windows=hints.trained_windows or tuple(trained),
    )


def _hints_of_yacs(config: Any) -> Hints:
    """The official checkpoint's config object, of which only plain values are looked at."""
    try:
        kind = config["MODEL"].get("TYPE", "swin")
        section = config["MODEL"]["SWINV2" if kind == "swinv2" else "SWIN"]
        return Hints(
            image_size=_int(config["DATA"]["IMG_SIZE"]),
            window_size=_int(section["WINDOW_SIZE"]),
            trained_windows=_ints(section.get("PRETRAINED_WINDOW_SIZES")),
        )
    except (KeyError, TypeError, IndexError, AttributeError):
        return Hints()


def _size_of_masks(tensors: Mapping[str, Tensor]) -> int | None:
    """Side of the image that a first stage's shift mask was made for, pixels; None without one."""
    for name, tensor in tensors.items():
        if name.startswith("layers.0.") and name.endswith(".attn_mask") and tensor.ndim == 3:
            windows, tokens, _ = tensor.shape
            return round((windows * tokens) ** 0.5) * _PATCH
    return None


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _ints(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, list | tuple) and value and all(isinstance(item, int) for item in value):
        return tuple(value)
    return None
