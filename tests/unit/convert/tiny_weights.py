"""A tiny Swin with weights that no two tensors share, for the tests of conversion."""

import torch

from pretrain.config.schema import ModelConfig
from pretrain.convert.labels import Labels
from pretrain.convert.read import Loaded
from pretrain.models.build import build

CLASSES = ("n02012849", "n03126707", "n01440764")
NAMES = ("crane", "crane", "tench")
LABELS = Labels(CLASSES, NAMES)


def tiny_model(**changes):
    shape = {
        "variant": "swin_t",
        "image_size": 64,
        "window_size": 2,
        "num_classes": 3,
        "embed_dim": 12,
        "depths": (2, 1, 3, 2),
        "heads": (1, 2, 3, 4),
    }
    return ModelConfig.model_validate({**shape, **changes})


def tiny_weights(seed=0, dtype=torch.float32, **changes):
    """Weights by official names, all of them random: norms, biases and tables too."""
    generator = torch.Generator().manual_seed(seed)
    network = build(tiny_model(**changes))
    return {
        name: (torch.randn(value.shape, generator=generator) * 0.2 + (value.ndim == 1)).to(dtype)
        for name, value in network.named_parameters()
    }


def tiny_loaded(labels=LABELS, seed=0, **changes):
    return Loaded(
        tiny_weights(seed, **changes),
        tiny_model(**changes),
        "swinv2" if changes.get("variant", "").startswith("swinv2") else "swin",
        labels,
        None,
        "official",
        (),
    )


def same(one, other):
    """Whether two state dicts are equal bit for bit, types included."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
