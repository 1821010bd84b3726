import math

import pytest
import torch
from tiny_swin import FAMILIES, randomized, tiny_shape
from torch import Tensor

from pretrain.models.mixers import WindowAttention, relative_position_index
from pretrain.models.swin import Block, Swin
from pretrain.models.variants import Shape
from pretrain.models.windows import MASKED_LOGIT, merge_windows, partition_windows, shift_mask

RECOMPUTE_ALL = ("full",) * 4
every_family = pytest.mark.parametrize("family", FAMILIES)


def images(count: int = 2, height: int = 64, width: int = 64, seed: int = 7) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def train_step(model: Swin, inputs: Tensor, seed: int = 0, **autocast) -> dict[str, Tensor]:
    """Logits and all gradients of one training forward pass, drop path drawn from ``seed``."""
    model.train().zero_grad()
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(autocast)):
        logits = model(inputs)
    logits.float().square().sum().backward()
    return {"logits": logits.detach()} | {n: p.grad.clone() for n, p in model.named_parameters()}


def test_state_dict_has_the_official_names_and_no_derived_buffers():
    shape = Shape(12, (2, 2, 6, 2), (1, 2, 3, 6), 224, 7, 10)
    names = set(Swin(shape).state_dict())
    assert len(names) == 173  # Swin-T in the official, timm and torchvision layouts
    assert names >= {
        "patch_embed.proj.weight",
        "patch_embed.norm.bias",
        "layers.2.blocks.5.norm1.weight",
        "layers.2.blocks.5.attn.qkv.bias",
        "layers.2.blocks.5.attn.proj.weight",
        "layers.2.blocks.5.attn.relative_position_bias_table",
        "layers.2.blocks.5.mlp.fc1.weight",
        "layers.2.blocks.5.mlp.fc2.bias",
        "layers.2.downsample.reduction.weight",
        "layers.2.downsample.norm.bias",
        "norm.weight",
        "head.bias",
    }
    assert not [name for name in names if "index" in name or "mask" in name]
    assert not [name for name in names if name.startswith("layers.3.downsample")]


def test_v2_and_mlp_state_dicts_have_the_official_names_too():
    names = {
        family: {
            name: tuple(t.shape) for name, t in Swin(tiny_shape(family=family)).state_dict().items()
        }
        for family in FAMILIES
    }
    shared = {name for name in names["v1"] if ".attn." not in name}
    block, v2 = "layers.1.blocks.1.", "layers.1.blocks.1.attn."
    attention = {
        f"{v2}logit_scale": (2, 1, 1),
        f"{v2}cpb_mlp.0.weight": (512, 2),
        f"{v2}cpb_mlp.0.bias": (512,),
        f"{v2}cpb_mlp.2.weight": (2, 512),
        f"{v2}qkv.weight": (72, 24),
        f"{v2}q_bias": (24,),
        f"{v2}v_bias": (24,),
        f"{v2}proj.weight": (24, 24),
        f"{v2}proj.bias": (24,),
    }
    spatial = {f"{block}spatial_mlp.weight": (32, 16, 1), f"{block}spatial_mlp.bias": (32,)}
    for family, own in (("v2", attention), ("mlp", spatial)):
        assert shared < names[family].keys()
        mixing = {n: s for n, s in names[family].items() if n not in shared and n.startswith(block)}
        assert mixing == own
    assert names["v2"]["layers.1.downsample.norm.weight"] == (48,)  # after the reduction
    assert names["mlp"]["layers.1.downsample.norm.weight"] == (96,)


@pytest.mark.parametrize("family", ["v1", "v2"])
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_gets_what_the_fused_gpu_kernels_take(monkeypatch, autocast, family):
    """One dtype, and last dimensions of stride 1: else torch falls back without a word."""
    attention, calls = torch.nn.functional.scaled_dot_product_attention, []

    def spy(*inputs: Tensor, attn_mask: Tensor, scale: float) -> Tensor:
        calls.append([(part.dtype, part.stride(-1)) for part in (*inputs, attn_mask)])
        return attention(*inputs, attn_mask=attn_mask, scale=scale)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model = Swin(tiny_shape(family=family))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(images())
    dtype = torch.bfloat16 if autocast else torch.float32
    assert calls == [[(dtype, 1)] * 4] * sum(model.shape.depths)


@pytest.mark.parametrize(
    ("family", "special"),
    [
        ("v1", {"relative_position_bias_table": 8}),
        ("v2", {"logit_scale": 8, "cpb_mlp.0.weight": 8, "cpb_mlp.2.weight": 8, "q_bias": 8}),
        ("mlp", {"spatial_mlp.bias": 8}),
    ],
)
def test_no_weight_decay_names_are_norms_biases_and_position_biases(family, special):
    model = Swin(tiny_shape(family=family))
    exempt = model.no_weight_decay_names()
    decayed = {name for name, _ in model.named_parameters()} - exempt
    suffixes = ("proj.weight", "qkv.weight", "fc1.weight", "fc2.weight", "reduction.weight")
    suffixes = (*suffixes, "head.weight", "spatial_mlp.weight")
    assert decayed and all(name.endswith(suffixes) for name in decayed)
    for ending, count in special.items():
        assert sum(name.endswith(ending) for name in exempt) == count
    assert {"norm.weight", "head.bias", "patch_embed.proj.bias"} <= exempt


@every_family
def test_layer_depths_cover_every_parameter_in_the_order_of_the_network(family):
    model = Swin(tiny_shape(family=family))
    depths = model.layer_depths()
    assert depths.keys() == {name for name, _ in model.named_parameters()}
    assert [depths[name] for name in depths] == sorted(depths.values())
    assert set(depths.values()) == set(range(8 + 2))


def test_windows_are_cut_row_by_row_and_merge_back():
    maps = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    windows = partition_windows(maps, 2)
    assert windows.shape == (2, 6, 4, 1)
    assert windows[0, 1, :, 0].tolist() == [2, 3, 8, 9]
    assert windows[0, 3, :, 0].tolist() == [12, 13, 18, 19]
    assert torch.equal(merge_windows(windows, 2, 4, 6), maps)


def test_relative_position_index_of_a_window_of_two():
    # Offsets (query - key) of (-1..1, -1..1), numbered row by row.
    assert relative_position_index(2).view(4, 4).tolist() == [
        [4, 3, 1, 0],
        [5, 4, 2, 1],
        [7, 6, 4, 3],
        [8, 7, 5, 4],
    ]


def test_smaller_windows_use_the_middle_of_the_table():
    attention = WindowAttention(channels=4, heads=2, window=5)
    with torch.no_grad():
        table = attention.relative_position_bias_table.normal_()
    small = WindowAttention(channels=4, heads=2, window=3)
    with torch.no_grad():
        middle = table.view(9, 9, 2)[2:7, 2:7]
        small.relative_position_bias_table.copy_(middle.reshape(25, 2))
    assert torch.equal(attention.position_bias(3), small.position_bias(3))


def test_shift_mask_separates_what_was_not_adjacent():
    window, shift, side = 4, 2, 8
    mask = shift_mask(side, side, window, shift, torch.device("cpu"))
    assert mask.shape == (4, 16, 16)
    # Where each token of the shifted map came from: neighbours lie less than a window apart.
    origin = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1)
    origin = partition_windows(origin[None].roll((-shift, -shift), (1, 2)), window)[0]  # [N, K, 2]
    near = ((origin[:, :, None] - origin[:, None]).abs() < window).all(-1)
    assert torch.equal(mask, torch.where(near, 0.0, MASKED_LOGIT))


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (32, 96), (57, 130), (8, 8), (1, 1), (200, 33)]
)
@every_family
def test_any_image_size_gives_maps_at_four_strides(height, width, family):
    model = randomized(Swin(tiny_shape(family=family))).eval()
    with torch.no_grad():
        maps = model.forward_features(images(2, height, width))
        logits = model(images(2, height, width))
    sides = [(math.ceil(height / 4), math.ceil(width / 4))]
    for _ in range(3):
        sides.append((math.ceil(sides[-1][0] / 2), math.ceil(sides[-1][1] / 2)))
    shapes = [(2, 12 * 2**i, *side) for i, side in enumerate(sides)]
    assert [tuple(stage.shape) for stage in maps] == shapes
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


def test_the_configured_size_changes_no_result_where_windows_agree():
    built_for = {size: randomized(Swin(tiny_shape(size))).eval() for size in (128, 256)}
    inputs = images(1, 256, 256)
    assert torch.equal(built_for[128](inputs), built_for[256](inputs))


@every_family
def test_images_do_not_affect_each_other(family):
    model = randomized(Swin(tiny_shape(family=family)).double()).eval()
    inputs = images(4).double()
    alone = torch.cat([model(one[None]) for one in inputs])
    assert torch.allclose(model(inputs), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("autocast", [{}, {"bf16": True}], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "stages",
    [
        RECOMPUTE_ALL,
        ("none", "full", "none", "full"),
        ("selective_mlp", "full_offload", "selective_attention", "none"),
        ("selective_attention", "selective_mlp", "full", "full_offload"),
    ],
    ids=str,
)
@every_family
def test_recomputed_activations_change_no_bit(stages, autocast, family):
    shape = tiny_shape(drop_path=0.5, family=family)
    kept = train_step(randomized(Swin(shape)), images(), **autocast)
    recomputed = train_step(randomized(Swin(shape, stages)), images(), **autocast)
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
    other_draw = train_step(randomized(Swin(shape)), images(), seed=1, **autocast)
    assert not torch.equal(kept["logits"], other_draw["logits"])


def test_recomputing_keeps_only_the_blocks_inputs():
    kept = {}
    for stages in (("none",) * 4, RECOMPUTE_ALL):
        saved = []
        model = Swin(tiny_shape(), stages)
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, saved=saved: saved.append(tensor) or tensor, lambda tensor: tensor
        )
        with hooks:
            model(images())
        kept[stages] = len(saved)
    assert kept[RECOMPUTE_ALL] * 4 < kept[("none",) * 4]


def test_each_kind_of_recomputing_calls_again_what_it_names():
    called: dict[str, int] = {}

    def counting(name):
        return lambda *_: called.__setitem__(name, called.get(name, 0) + 1)

    for stages in ("none", "selective_attention", "selective_mlp", "full", "full_offload"):
        model = Swin(tiny_shape(), (stages,) * 4)
        block = model.layers[0].blocks[0]
        block.attn.qkv.register_forward_hook(counting(f"{stages} attention"))
        block.mlp.fc1.register_forward_hook(counting(f"{stages} mlp"))
        model(images()).sum().backward()
        with torch.no_grad():
            model(images())  # evaluation recomputes nothing
    assert called == {
        "none attention": 2, "none mlp": 2,
        "selective_attention attention": 3, "selective_attention mlp": 2,
        "selective_mlp attention": 2, "selective_mlp mlp": 3,
        "full attention": 3, "full mlp": 3,
        "full_offload attention": 3, "full_offload mlp": 3,
    }  # fmt: skip


def test_offloading_keeps_copies_of_the_blocks_inputs_only(monkeypatch):
    from pretrain.models import swin

    original, copied = swin.save_on_cpu, []

    class Watched(original):
        def __init__(self, pin_memory):
            super().__init__(pin_memory)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: copied.append(tuple(tensor.shape)) or pack(tensor)

    monkeypatch.setattr(swin, "save_on_cpu", Watched)
    Swin(tiny_shape(drop_path=0.5), ("full_offload", "none", "none", "full"))(images())
    count, side = len(images()), 16
    # Older torch (2.8) also keeps an empty tensor for each recomputed block.
    assert [size for size in copied if size != (0,)] == [(count, side, side, 12)] * 2


def test_drop_path_rises_linearly_to_its_rate():
    blocks = [b for stage in Swin(tiny_shape(drop_path=0.35)).layers for b in stage.blocks]
    assert [block.drop_path for block in blocks] == pytest.approx([0.05 * i for i in range(8)])


def test_drop_path_drops_whole_branches_of_single_images():
    rate, count = 0.3, 4000
    block = Block(Shape(4, (1,) * 4, (1,) * 4, 8, 2, 5), stage=0, drop_path=rate)
    torch.nn.init.zeros_(block.mlp.fc2.weight)  # leaves the attention's branch alone
    torch.nn.init.zeros_(block.mlp.fc2.bias)
    x = images(1, 2, 2)[:, :1].permute(0, 2, 3, 1).expand(count, 2, 2, 4)
    torch.manual_seed(0)
    with torch.no_grad():
        branch = block(x, 2, 0, None, None) - x
        trained = block(x, 2, 0, None, block.draw_scales(x)) - x
    dropped = (trained == 0).flatten(1).all(1)
    assert torch.allclose(trained[~dropped], branch[~dropped] / (1 - rate), atol=1e-6)
    assert (trained[~dropped] != 0).any()
    four_deviations = 4 * (rate * (1 - rate) / count) ** 0.5
    assert abs(dropped.float().mean().item() - rate) < four_deviations


@every_family
def test_drop_path_is_off_in_evaluation(family):
    shapes = [tiny_shape(drop_path=rate, family=family) for rate in (0.0, 0.9)]
    without, with_drop = (randomized(Swin(shape)).eval() for shape in shapes)
    assert torch.equal(without(images()), with_drop(images()))
    assert not torch.equal(with_drop.train()(images()), without(images()))


@every_family
def test_autocast_computes_in_bf16_around_an_fp32_residual_stream(family):
    model = randomized(Swin(tiny_shape(family=family))).eval()
    exact = model(images())
    with torch.autocast("cpu", torch.bfloat16):
        rounded, maps = model(images()), model.forward_features(images())
    assert rounded.dtype == torch.bfloat16
    assert {stage.dtype for stage in maps} == {torch.float32}
    # Some fifty products in a row, each rounded to 8 bits.
    assert 0 < (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()
    gradients = train_step(model, images(), bf16=True)
    mixing = {"v1": "bias_table", "v2": "cpb_mlp", "mlp": "spatial_mlp"}[family]
    mixing_gradients = [g for name, g in gradients.items() if mixing in name]
    assert {g.dtype for g in mixing_gradients} == {torch.float32}
    assert all(g.abs().sum() > 0 for g in mixing_gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@every_family
def test_the_whole_model_takes_any_float_type(dtype, family):
    model = randomized(Swin(tiny_shape(family=family))).eval()
    exact = model(images())
    converted = model.to(dtype)(images().to(dtype))
    assert converted.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.1
    assert (converted - exact).abs().max() < tolerance * exact.abs().max()


@pytest.mark.parametrize("family", ["v1", pytest.param("v2", marks=pytest.mark.slow), "mlp"])
def test_compiles_without_graph_breaks_to_the_same_results(family):
    torch.compiler.reset()
    shape = Shape(12, (2, 1, 1, 1), (1, 2, 3, 6), 32, 4, 5, drop_path=0.5, family=family)
    stages = ("full", "none", "none", "none")
    plain, compiled = (randomized(Swin(shape, stages)) for _ in range(2))
    compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    inputs = images(2, 32, 32)
    expected, found = train_step(plain, inputs), train_step(compiled, inputs)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    if family == "v1":
        odd = images(1, 38, 26)  # maps that the kept masks do not fit
        with torch.no_grad():
            assert torch.equal(plain.eval()(odd), compiled.eval()(odd))
