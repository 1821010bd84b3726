import re

import pytest
import torch
from tiny_swin import FAMILIES, randomized, tiny_shape
from torch.nn import functional as F

from pretrain.config.schema import ModelConfig
from pretrain.errors import ModelError
from pretrain.models.swin import Swin
from pretrain.models.transfer import resize_bias_table, transfer

WIDE = [f"n{index:08d}" for index in range(9)]
NARROW = ["n00000007", "n00000002", "n99999999", "n00000000", "n00000004"]


def source_weights(num_classes: int = 9, **shape) -> dict[str, torch.Tensor]:
    return randomized(Swin(tiny_shape(num_classes=num_classes, **shape)), seed=3).state_dict()


def target_model(num_classes: int = 5, **shape) -> Swin:
    return randomized(Swin(tiny_shape(num_classes=num_classes, **shape)), seed=4)


def refusal(weights, source_classes, model, target_classes, source_model=None) -> str:
    """The error's text, after checking that the model was left alone."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        transfer(weights, source_classes, model, target_classes, source_model)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return str(caught.value)


def test_same_network_and_classes_are_copied_bit_for_bit():
    weights, model = source_weights(), target_model(9)
    report = transfer(weights, WIDE, model, WIDE)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert (report.head, report.resized, report.fresh_classes) == ("copied", (), ())
    assert len(report.copied) == len(weights) - 2


@pytest.mark.parametrize("classes", [WIDE, None])
def test_a_model_without_a_head_takes_the_rest(classes):
    weights, model = source_weights(), target_model(0)
    report = transfer(weights, classes, model, NARROW)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert (report.head, report.fresh_classes, report.unused_classes) == ("left out", (), 0)
    assert report.lines() == [f"{len(weights) - 2} parameters copied", "head left out"]


def test_weights_without_a_head_leave_a_fresh_one():
    weights, model = source_weights(0), target_model(5)
    report = transfer(weights, None, model, NARROW)
    assert not model.head.weight.any()
    assert report.lines() == [f"{len(weights)} parameters copied", "head fresh"]


def test_head_rows_follow_the_class_ids():
    weights, model = source_weights(), target_model()
    report = transfer(weights, WIDE, model, NARROW)
    for name in ("head.weight", "head.bias"):
        rows = dict(model.named_parameters())[name]
        for index, row in enumerate([7, 2, None, 0, 4]):
            expected = torch.zeros_like(rows[index]) if row is None else weights[name][row]
            assert torch.equal(rows[index], expected)
    assert report.head == "mapped"
    assert (report.mapped_classes, report.unused_classes) == (4, 5)
    assert report.fresh_classes == ("n99999999",)
    assert report.lines()[-1] == (
        "head mapped: 4 classes by id, 1 from zeros: n99999999; 5 of the source unused"
    )


def test_the_same_classes_in_another_order_are_mapped_not_copied():
    weights, model = source_weights(), target_model(9)
    report = transfer(weights, WIDE, model, WIDE[::-1])
    assert report.head == "mapped"
    assert torch.equal(model.head.weight, weights["head.weight"].flip(0))
    assert torch.equal(model.head.bias, weights["head.bias"].flip(0))


@pytest.mark.parametrize(("target", "classes"), [(9, WIDE), (5, NARROW)])
def test_a_head_of_unknown_classes_is_never_taken_by_position(target, classes):
    """Not even one of the same size: two orders of the same 21,841 classes differ in 12,636."""
    weights, model = source_weights(), target_model(target)
    report = transfer(weights, None, model, classes)
    assert (report.head, report.fresh_classes) == ("fresh", tuple(classes))
    assert not model.head.weight.any()
    assert not model.head.bias.any()
    assert report.lines()[-1] == (
        "head fresh, from zeros: the source does not say which class each of its rows is"
    )
    assert torch.equal(model.norm.weight, weights["norm.weight"])


def test_weights_without_a_head_get_a_fresh_one():
    weights = {n: t for n, t in source_weights().items() if not n.startswith("head.")}
    model = target_model()
    assert transfer(weights, WIDE, model, NARROW).head == "fresh"
    assert not model.head.weight.any()
    assert torch.equal(model.norm.weight, weights["norm.weight"])


def test_bias_tables_are_resized_to_the_new_windows():
    weights, model = (
        source_weights(image_size=224, window_size=7),
        target_model(9, image_size=384, window_size=12),
    )
    report = transfer(weights, WIDE, model, WIDE)
    assert len(report.resized) == 8
    name = "layers.1.blocks.1.attn.relative_position_bias_table"
    table = model.state_dict()[name]
    assert table.shape == (23 * 23, 2)
    grid = weights[name].view(13, 13, 2).permute(2, 0, 1)[None]
    expected = F.interpolate(grid, size=(23, 23), mode="bicubic")[0].permute(1, 2, 0)
    assert torch.equal(table.view(23, 23, 2), expected)
    assert "8 relative position bias tables resized (bicubic)" in report.lines()


def test_resizing_keeps_constants_heads_and_axes():
    rows = torch.arange(13.0)[:, None].expand(13, 13)
    table = torch.stack([torch.ones(13, 13), rows, rows.T], dim=-1).reshape(169, 3)
    resized = resize_bias_table(table, 23).view(23, 23, 3)
    assert torch.allclose(resized[..., 0], torch.ones(23, 23), atol=1e-6)
    assert torch.allclose(resized[..., 1], resized[..., 2].T, atol=1e-6)
    assert torch.allclose(resized[11, 11], torch.tensor([1.0, 6.0, 6.0]), atol=1e-5)
    assert (resized[1:, 5, 1] > resized[:-1, 5, 1]).all()
    assert torch.equal(resize_bias_table(table, 13), table)


V2_SOURCE = ModelConfig(variant="swinv2_t", image_size=192, window_size=12, num_classes=9)


def test_v2_weights_move_to_a_larger_window_with_the_unit_they_were_trained_with():
    weights = source_weights(image_size=192, window_size=12, family="v2")
    larger = {"image_size": 384, "window_size": 24, "family": "v2"}
    model = target_model(9, **larger, pretrained_window_sizes=(12, 12, 12, 6))
    report = transfer(weights, WIDE, model, WIDE, V2_SOURCE)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert report.resized == ()
    assert "position bias networks kept, as trained with windows 12 12 12 6" in report.lines()
    report = transfer(weights, WIDE, model, WIDE)
    assert report.lines()[1].endswith("; the source does not say what its own were")

    before = Swin(tiny_shape(192, 12, 9, family="v2"))
    before.load_state_dict(weights)
    old = before.layers[0].blocks[0].attn.position_bias(12).view(-1, 12, 12, 12, 12)
    new = model.layers[0].blocks[0].attn.position_bias(24).view(-1, 24, 24, 24, 24)
    assert torch.allclose(new[:, :12, :12, :12, :12], old, atol=1e-5)


def test_v2_weights_are_refused_where_the_config_says_other_windows():
    weights = source_weights(image_size=192, window_size=12, family="v2")
    model = target_model(9, image_size=384, window_size=24, family="v2")
    message = refusal(weights, WIDE, model, WIDE, V2_SOURCE)
    assert "trained with windows of [12, 12, 12, 6] tokens, got [24, 24, 24, 12]" in message
    assert message.endswith("give model.pretrained_window_sizes=[12, 12, 12, 6]")


@pytest.mark.parametrize("source", FAMILIES)
@pytest.mark.parametrize("target", FAMILIES)
def test_another_familys_weights_are_refused_by_name(source, target):
    names = {"v1": "Swin V1", "v2": "Swin V2", "mlp": "Swin-MLP"}
    weights, model = source_weights(family=source), target_model(9, family=target)
    if source == target:
        assert transfer(weights, WIDE, model, WIDE).head == "copied"
        return
    message = refusal(weights, WIDE, model, WIDE)
    assert f"weights: are a {names[source]}'s (layers.0.blocks.0." in message
    assert f"expected a {names[target]}'s" in message


def test_swin_mlp_weights_of_another_window_are_refused_with_the_reason():
    weights = source_weights(family="mlp", window_size=4)
    message = refusal(weights, WIDE, target_model(9, family="mlp", window_size=2), WIDE)
    assert "of another shape: layers.0.blocks.0.spatial_mlp.weight (got 16x16x1" in message
    assert message.splitlines()[-1].startswith("  a Swin-MLP's weights fit one window only")


def test_derived_buffers_of_other_implementations_are_dropped():
    foreign = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
    }
    report = transfer(source_weights() | foreign, WIDE, target_model(9), WIDE)
    assert report.dropped == tuple(foreign)
    assert "2 derived buffers of the source dropped" in report.lines()


def test_low_precision_weights_are_widened():
    weights = {name: tensor.bfloat16() for name, tensor in source_weights().items()}
    model = target_model()
    transfer(weights, WIDE, model, NARROW)
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight[0], weights["head.weight"][7].float())


def test_everything_that_does_not_fit_is_listed_by_kind():
    weights = source_weights()
    del weights["norm.bias"], weights["patch_embed.norm.weight"]
    weights["head.fc.weight"] = torch.zeros(1)
    weights["layers.0.blocks.0.mlp.fc1.weight"] = torch.zeros(7, 12)
    weights["layers.0.blocks.0.attn.relative_position_bias_table"] = torch.zeros(48, 1)
    weights["layers.3.blocks.1.mlp.fc2.bias"][2] = torch.nan
    message = refusal(weights, WIDE, target_model(), NARROW)
    lines = message.splitlines()
    assert lines[1:] == [
        "  2 missing: patch_embed.norm.weight, norm.bias",
        "  1 unexpected: head.fc.weight",
        "  2 of another shape: layers.0.blocks.0.attn.relative_position_bias_table (got 48x1, "
        "expected 49x1), layers.0.blocks.0.mlp.fc1.weight (got 7x12, expected 48x12)",
        "  1 not finite: layers.3.blocks.1.mlp.fc2.bias",
    ]


def test_weights_of_another_variant_are_refused_briefly():
    wider = Swin(tiny_shape(num_classes=5))
    weights = {name: torch.zeros(*t.shape, 1) for name, t in wider.state_dict().items()}
    message = refusal(weights, None, target_model(), NARROW)
    assert re.search(r"\d+ of another shape: .* and \d+ more$", message)


@pytest.mark.parametrize("part", ["head.weight", "head.bias"])
def test_half_a_head_is_refused(part):
    weights = source_weights()
    del weights[part]
    assert f"1 missing: {part}" in refusal(weights, WIDE, target_model(), NARROW)


def test_an_uneven_head_is_refused():
    weights = source_weights()
    weights["head.bias"] = weights["head.bias"][:3]
    message = refusal(weights, WIDE, target_model(), NARROW)
    assert "head (got 9 rows of weights and 3 biases)" in message


@pytest.mark.parametrize(
    ("source_classes", "target_classes", "message"),
    [
        (WIDE[:-1], NARROW, r"source classes: got 8 ids for a head of 9 rows"),
        (WIDE, NARROW[:-1], r"target classes: got 4 ids for a head of 5 rows"),
        ([*WIDE[:-1], WIDE[0]], NARROW, r"source classes: .* more than once: n00000000"),
        (WIDE, [*NARROW[:-1], NARROW[0]], r"target classes: .* more than once: n00000007"),
    ],
)
def test_class_lists_that_do_not_match_their_head_are_refused(
    source_classes, target_classes, message
):
    assert re.search(
        message, refusal(source_weights(), source_classes, target_model(), target_classes)
    )
