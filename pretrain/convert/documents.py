"""What stands beside weights on a model hub: configs, preprocessor, model card. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pretrain.config.schema import ModelConfig
from pretrain.convert.labels import Labels, unique_names
from pretrain.models.cost import count_parameters
from pretrain.models.variants import MLP_RATIO, VARIANTS, Shape, shape_of

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_CROP = 256 / 224
"""Short side before the crop, over the crop's side (official evaluation)."""
_SQUASHED_FROM = 320
"""Images of this side and above are squashed, as the official ones of 384 are."""
_BICUBIC = 3
"""Pillow's number of it."""
_TIMM_WORDS = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
_TIMM_SIZES = {
    "tiny": ((7, 224),),
    "small": ((7, 224),),
    "base": ((7, 224), (12, 384)),
    "large": ((7, 224), (12, 384)),
}
"""Window and image sizes that timm has an entry for."""
_NORM_EPS = 1e-5
_PAPERS = {"v1": "2103.14030", "v2": "2111.09883", "mlp": "2103.14030"}


def preprocessing_of(model: ModelConfig, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What evaluation does to an image: the source's word, else the official practice.

    Returns:
        ``image_size``; ``resize`` (short side before a centre crop, or None for squashing);
        ``mean`` and ``std`` on the scale 0 to 1.
    """
    size = model.image_size
    default = {
        "image_size": size,
        "resize": None if size >= _SQUASHED_FROM else round(size * _CROP),
        "mean": list(MEAN),
        "std": list(STD),
    }
    return default | dict(given or {})


def timm_config(
    model: ModelConfig, labels: Labels, preprocessing: Mapping[str, Any], *, has_head: bool
) -> dict[str, Any]:
    """The config.json of a directory that ``timm.create_model("local-dir:…")`` reads.

    ``num_classes`` stands outside ``model_args``: inside, transformers' wrapper of timm would get
    it twice.
    """
    shape = shape_of(model)
    architecture, own = _timm_architecture(model, shape)
    classes = model.num_classes if has_head else 0
    resize = preprocessing["resize"]
    last = model.image_size // 32
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": shape.channels[-1],
        "pretrained_cfg": {
            "tag": "swin_pretrain",
            "custom_load": False,
            "input_size": [3, model.image_size, model.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0 if resize is None else model.image_size / resize,
            "crop_mode": "squash" if resize is None else "center",
            "mean": list(preprocessing["mean"]),
            "std": list(preprocessing["std"]),
            "num_classes": classes,
            "pool_size": [last, last],
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
        },
    }
    if own:
        config["model_args"] = own
    if labels.ids is not None and has_head:
        names = labels.names or labels.ids
        config["label_names"] = list(labels.ids)
        config["label_descriptions"] = dict(zip(labels.ids, names, strict=True))
    return config


def huggingface_config(model: ModelConfig, labels: Labels, *, has_head: bool) -> dict[str, Any]:
    """The config.json of transformers' Swin; ``class_ids`` is ours and ignored there."""
    shape = shape_of(model)
    names = unique_names(labels, model.num_classes) if has_head else []
    second = shape.family == "v2"
    kind = "Swinv2" if second else "Swin"
    config: dict[str, Any] = {
        "model_type": kind.lower(),
        "architectures": [f"{kind}ForImageClassification" if has_head else f"{kind}Model"],
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "num_channels": 3,
        "embed_dim": shape.embed_dim,
        "depths": list(shape.depths),
        "num_heads": list(shape.heads),
        "num_layers": len(shape.depths),
        "hidden_size": shape.channels[-1],
        "window_size": shape.window_size,
        "mlp_ratio": float(MLP_RATIO),
        "qkv_bias": True,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": shape.drop_path,
        "use_absolute_embeddings": False,
        "layer_norm_eps": _NORM_EPS,
        "initializer_range": 0.02,
    }
    if second:
        config["pretrained_window_sizes"] = list(shape.pretrained_window_sizes)
    if has_head:
        config["id2label"] = {str(row): name for row, name in enumerate(names)}
        config["label2id"] = {name: row for row, name in enumerate(names)}
    if labels.ids is not None and has_head:
        config["class_ids"] = list(labels.ids)
    return config


def huggingface_preprocessor(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessor_config.json that makes the pixels of our evaluation."""
    side, resize = preprocessing["image_size"], preprocessing["resize"]
    shared = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": _BICUBIC,
        "image_mean": list(preprocessing["mean"]),
        "image_std": list(preprocessing["std"]),
    }
    if resize is None:
        size = {"height": side, "width": side}
        return {"image_processor_type": "ViTImageProcessor", "size": size, **shared}
    # The vision transformer's processor squashes; this one keeps the ratio and crops.
    return {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": resize},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_convert_rgb": True,
        **shared,
    }


def model_card(
    model: ModelConfig,
    labels: Labels,
    preprocessing: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    has_head: bool,
) -> str:
    """README.md with the metadata that hubs read at its head."""
    task = "image-classification" if has_head else "image-feature-extraction"
    shape, resize = shape_of(model), preprocessing["resize"]
    shape = shape if has_head else replace(shape, num_classes=0)
    side = preprocessing["image_size"]
    how = f"squashed to {side} x {side}" if resize is None else f"short side {resize}, crop {side}"
    mean, std = (_list(preprocessing[key]) for key in ("mean", "std"))
    classes = f"{model.num_classes:,}" if has_head else "none: there is no head"
    classes += ", ids in `class_ids`" if labels.ids is not None else ""
    what = "An image classifier." if has_head else "An image encoder, without a classifier."
    head = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": [task, "vision", "swin"],
    }
    rows = [
        ("network", f"{model.variant} (arXiv {_PAPERS[shape.family]})"),
        (
            "parameters",
            f"{count_parameters(shape if has_head else replace(shape, num_classes=0)):,}",
        ),
        ("image, window", f"{shape.image_size} pixels, {shape.window_size} tokens"),
        ("classes", classes),
        ("preprocessing", f"bicubic, {how}; mean {mean}, std {std}"),
        *((str(key), str(value)) for key, value in provenance.items()),
    ]
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows)
    return (
        "---\n" + "".join(_yaml(key, value) for key, value in head.items()) + "---\n\n"
        f"# {model.variant}\n\n{what}\n\n| | |\n|---|---|\n{table}\n\n"
        "```python\nfrom transformers import pipeline\n\n"
        f'pipeline("{task}", model="PATH")("image.jpg")\n```\n'
    )


def _timm_architecture(model: ModelConfig, shape: Shape) -> tuple[str, dict[str, Any]]:
    """The name of timm's nearest entry, and what differs from it."""
    word = _TIMM_WORDS[model.variant[-1]]
    if shape.family == "v2":
        own = _timm_shape(shape) | {"window_size": shape.window_size, "img_size": shape.image_size}
        if any(shape.pretrained_window_sizes):
            own["pretrained_window_sizes"] = list(shape.pretrained_window_sizes)
        return f"swinv2_{word}_window{'12_192' if word == 'large' else '8_256'}", own
    sizes = _TIMM_SIZES[word]
    here = (shape.window_size, shape.image_size)
    window, side = here if here in sizes else sizes[0]
    own: dict[str, Any] = {}
    if here not in sizes:
        own = {"window_size": shape.window_size, "img_size": shape.image_size}
    row = VARIANTS[model.variant]
    if (row.embed_dim, row.depths, row.heads) != (shape.embed_dim, shape.depths, shape.heads):
        own |= _timm_shape(shape)
    return f"swin_{word}_patch4_window{window}_{side}", own


def _timm_shape(shape: Shape) -> dict[str, Any]:
    return {
        "embed_dim": shape.embed_dim,
        "depths": list(shape.depths),
        "num_heads": list(shape.heads),
    }


def _yaml(key: str, value: str | Sequence[str]) -> str:
    if isinstance(value, str):
        return f"{key}: {value}\n"
    return f"{key}:\n" + "".join(f"- {item}\n" for item in value)


def _list(values: Sequence[float]) -> str:
    return ", ".join(str(value) for value in values)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
