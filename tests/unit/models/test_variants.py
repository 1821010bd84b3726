import subprocess
import sys
from typing import get_args

import pytest
from tiny_swin import config, tiny_shape

from pretrain.config.schema import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.variants import (
    VARIANTS,
    Shape,
    check_image_size,
    layer_depth,
    shape_of,
    stage_maps,
    trained_windows,
)


def test_the_config_offers_every_variant_of_the_table():
    assert set(get_args(ModelConfig.model_fields["variant"].annotation)) == set(VARIANTS)


def test_layer_depths_are_those_of_the_published_layer_decay():
    shape = shape_of(config())
    depths = {
        "patch_embed.proj.weight": 0,
        "patch_embed.norm.bias": 0,
        "layers.0.blocks.0.norm1.weight": 1,
        "layers.0.blocks.1.mlp.fc2.bias": 2,
        "layers.0.downsample.reduction.weight": 2,
        "layers.1.blocks.0.attn.qkv.weight": 3,
        "layers.2.blocks.5.attn.proj.bias": 10,
        "layers.2.downsample.norm.bias": 10,
        "layers.3.blocks.1.norm2.weight": 12,
        "norm.weight": 13,
        "head.weight": 13,
    }
    assert {name: layer_depth(name, shape) for name in depths} == depths


def test_windows_of_an_earlier_training_replace_the_models_own():
    own = shape_of(config("swinv2_b", 256, 16))
    assert trained_windows(own) == (16, 16, 16, 8)
    tuned = shape_of(config("swinv2_b", 256, 16, pretrained_window_sizes=(12, 12, 12, 6)))
    assert trained_windows(tuned) == (12, 12, 12, 6)
    assert stage_maps(tuned) == stage_maps(own)


@pytest.mark.parametrize("variant", ["swin_t", "swin_mlp_b"])
def test_windows_of_an_earlier_training_are_refused_where_they_mean_nothing(variant):
    with pytest.raises(
        ConfigError, match=rf"pretrained_window_sizes: .* for {variant}; only swinv2"
    ):
        shape_of(config(variant, pretrained_window_sizes=(7, 7, 7, 7)))


def test_overrides_replace_the_variants_row():
    shape = shape_of(config(embed_dim=24, depths=(1, 1, 2, 1), heads=(2, 2, 4, 4), drop_path=0.2))
    assert shape == Shape(24, (1, 1, 2, 1), (2, 2, 4, 4), 224, 7, 1000, 0.2)
    assert shape.channels == (24, 48, 96, 192)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ConfigError, match=r"model\.heads\[1\]: got 5, .* 192 channels"):
        shape_of(config(heads=(3, 5, 12, 24)))


def test_windows_shrink_to_the_map_and_lose_their_shift():
    assert stage_maps(shape_of(config())) == [(56, 7, 3), (28, 7, 3), (14, 7, 3), (7, 7, 0)]
    assert stage_maps(shape_of(config(image_size=64, window_size=8))) == [
        (16, 8, 4),
        (8, 8, 0),
        (4, 4, 0),
        (2, 2, 0),
    ]


@pytest.mark.parametrize(
    ("image_size", "window_size"),
    [(224, 7), (448, 7), (384, 12), (192, 12), (256, 8), (32, 8), (64, 8), (32, 12)],
)
def test_tiled_image_sizes_pass(image_size, window_size):
    check_image_size(shape_of(config(image_size=image_size, window_size=window_size)))


@pytest.mark.parametrize(
    ("image_size", "window_size", "nearest"),
    [
        (225, 7, "224 or 448"),
        (224, 12, "192 or 384"),
        (96, 8, "64 or 128"),
        (1000, 7, "896 or 1120"),
        (20, 7, "224"),
        (100, 1, "96 or 128"),
    ],
)
def test_untiled_image_sizes_are_refused_with_the_nearest(image_size, window_size, nearest):
    shape = shape_of(config(image_size=image_size, window_size=window_size))
    with pytest.raises(ConfigError, match=rf"got {image_size}, .*: {nearest}$"):
        check_image_size(shape)


@pytest.mark.parametrize("window_size", [1, 4, 7, 8, 12])
def test_sizes_pass_exactly_where_nothing_is_padded_and_those_named_pass(window_size):
    def pads(image_size: int) -> bool:
        maps = stage_maps(tiny_shape(image_size, window_size))
        return image_size % 32 != 0 or any(side % window for side, window, _ in maps)

    for image_size in [*range(1, 1200, 7), *range(32, 1200, 32)]:
        try:
            check_image_size(tiny_shape(image_size, window_size))
            assert not pads(image_size), image_size
        except ConfigError as error:
            assert pads(image_size), image_size
            named = str(error).rpartition(": ")[2].split(" or ")
            assert not any(pads(int(size)) for size in named)


def test_shapes_and_costs_need_no_torch():
    code = "import sys, pretrain.models.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
