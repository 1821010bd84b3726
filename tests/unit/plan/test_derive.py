"""Every derived number, against the published recipes and by hand."""

import json

import pytest

from pretrain.config.load import load_run
from pretrain.data.manifest import Manifest, Shard, Split
from pretrain.errors import ConfigError
from pretrain.models.variants import VARIANTS
from pretrain.plan.derive import make_plan, split_batch
from pretrain.plan.memory import compare_with_peak
from pretrain.plan.render import render
from pretrain.plan.resources import resources_of


def plan_of(name, overrides=(), manifest=None, free_disk_bytes=10**12, probe=None):
    """Plan a shipped config on its own number of 8-GPU nodes."""
    config = load_run(name, overrides, cluster="slurm")
    resources = resources_of(config.cluster, 0)
    return make_plan(config, manifest, resources, free_disk_bytes=free_disk_bytes, probe=probe)


def manifest_of(tmp_path, *, classes, train, validation=50):
    def shard(samples):
        return Shard("a.tar", samples=samples, bytes=1000, sha256="0", index_sha256="0")

    ids = tuple(f"n{index:08d}" for index in range(classes))
    splits = {
        "train": Split("train", (shard(train),)),
        "validation": Split("validation", (shard(validation),)),
    }
    return Manifest(tmp_path, "small", ids, ids, splits)


# recipes: epochs, warm-up epochs, steps per epoch, peak, warm-up start, floor, parameters
GOLDEN = {
    "swin_t_22k": (90, 5, 3466, 1e-3, 1e-6, 1e-5, 44_315_083),
    "swin_s_22k": (90, 5, 3466, 1e-3, 1e-6, 1e-5, 65_632_987),
    "swin_b_22k": (90, 5, 3466, 1e-3, 1e-6, 1e-5, 109_130_249),
    "swin_l_22k": (90, 5, 3466, 1e-3, 1e-6, 1e-5, 228_565_093),
    "swin_t_22k_to_1k_224": (30, 5, 1251, 4e-5, 4e-8, 4e-7, 28_288_354),
    "swin_l_22k_to_1k_224": (30, 5, 1251, 4e-5, 4e-8, 4e-7, 196_532_476),
    "swin_t_22k_to_1k_384": (30, 5, 1251, 4e-5, 4e-8, 4e-7, 28_338_034),
    "swin_s_22k_to_1k_384": (30, 5, 1251, 4e-5, 4e-8, 4e-7, 49_707_778),
    "swin_b_22k_to_1k_384": (30, 5, 1251, 4e-5, 4e-8, 4e-7, 87_903_584),
    "swin_l_22k_to_1k_384": (30, 5, 1251, 4e-5, 4e-8, 4e-7, 196_735_516),
    "swin_t_1k": (300, 20, 1251, 1e-3, 1e-6, 1e-5, 28_288_354),
    "swin_s_1k": (300, 20, 1251, 1e-3, 1e-6, 1e-5, 49_606_258),
    "swin_b_1k": (300, 20, 1251, 1e-3, 1e-6, 1e-5, 87_768_224),
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_published_recipes_have_their_figures(name):
    epochs, warmup, steps, peak, start, floor, parameters = GOLDEN[name]
    plan = plan_of(name)
    assert plan.steps_per_epoch == steps
    assert plan.total_steps == epochs * steps
    assert plan.warmup_steps == warmup * steps
    assert (plan.peak_lr, plan.warmup_lr, plan.min_lr) == (peak, start, floor)
    assert plan.parameters == parameters


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_be_planned(variant):
    shape = ["model.image_size=192", "model.window_size=12", "engine.zero_stage=1"]
    plan = plan_of("swin_l_22k", [f"model.variant={variant}", *shape])
    assert plan.memory["parameters"] == 4 * plan.parameters
    assert plan.memory["activations"] > 0
    assert plan.cost.exaflop > 0


def test_the_giant_needs_its_parameters_divided():
    """3.0 billion parameters: 48 GB of weights, gradients and optimizer state in fp32."""
    giant = ["model.variant=swinv2_g", "model.image_size=192", "model.window_size=12"]
    whole, divided = (
        plan_of("swin_l_22k", [*giant, f"engine.zero_stage={stage}"]).memory for stage in (1, 3)
    )
    assert whole["parameters"] + whole["gradients"] == 8 * 3_087_326_257
    assert divided["parameters"] * 32 == pytest.approx(whole["parameters"])
    assert divided["gathered parameters"] == 4 * 10**9  # DeepSpeed's bound


def test_stage_3_gathers_a_smaller_network_whole():
    stage_3 = ["engine.zero_stage=3"]
    assert "gathered parameters" not in plan_of("swin_l_22k").memory
    assert plan_of("swin_l_22k", stage_3).memory["gathered parameters"] == 4 * 228_565_093
    halves = plan_of("swin_l_22k", [*stage_3, "engine.reduce_dtype=bf16"]).memory
    assert halves["gathered parameters"] == 2 * 228_565_093


def test_the_flagship_costs_what_was_computed_for_it():
    plan = plan_of("swin_l_22k")
    assert plan.cost.exaflop == pytest.approx(264, rel=0.01)
    assert plan.checkpoint_bytes == 12 * 228_565_093


def test_the_linear_rule_scales_peak_start_and_floor():
    plan = plan_of("swin_l_22k", ["batch.global_size=8192"])
    assert plan.lr_scale == 2
    assert (plan.peak_lr, plan.warmup_lr, plan.min_lr) == (2e-3, 2e-6, 2e-5)
    unscaled = plan_of("swin_l_22k", ["batch.global_size=8192", "optim.lr_reference_batch=null"])
    assert unscaled.peak_lr == 1e-3


@pytest.mark.parametrize(
    ("world", "expected"),
    [(1, (64, 64)), (8, (64, 8)), (32, (64, 2)), (64, (64, 1))],
)
def test_the_batch_is_split_the_same_way_whatever_the_world(world, expected):
    config = load_run("swin_l_22k")
    micro, accumulation = split_batch(config, world)
    assert (micro, accumulation) == expected
    assert world * micro * accumulation == 4096


def test_without_mixing_any_divisor_will_do():
    config = load_run(
        "swin_l_22k",
        ["augment.mix_probability=0.0", "batch.global_size=36", "batch.micro_size_max=5"],
    )
    assert split_batch(config, 3) == (4, 3)


@pytest.mark.parametrize(
    ("overrides", "world", "expected"),
    [
        (["batch.global_size=4000"], 32, "nearest that do: 2048 or 4096"),
        (["batch.global_size=100"], 32, "nearest that do: 2048 "),
        (["batch.micro_size_max=48"], 32, "give augment.mix_group=32"),
    ],
)
def test_batches_that_do_not_divide_are_refused(overrides, world, expected):
    with pytest.raises(ConfigError, match=expected):
        split_batch(load_run("swin_l_22k", overrides), world)


def test_an_image_the_window_cannot_serve_is_refused():
    with pytest.raises(ConfigError, match=r"model\.image_size: got 224.*192 or"):
        plan_of("swin_l_22k", ["model.window_size=12"])


@pytest.mark.parametrize(("classes", "relation"), [(999, "shorter"), (1001, "longer")])
def test_a_class_list_that_is_not_the_heads_is_refused(tmp_path, classes, relation):
    manifest = manifest_of(tmp_path, classes=classes, train=10_000)
    with pytest.raises(ConfigError, match=f"{relation} than the head: {classes} classes"):
        plan_of("swin_t_1k", manifest=manifest)


def test_the_manifest_counts_not_the_config(tmp_path):
    plan = plan_of("swin_t_1k", manifest=manifest_of(tmp_path, classes=1000, train=10_300))
    assert plan.steps_per_epoch == 10
    assert (plan.train_samples, plan.eval_samples, plan.shards) == (10_300, 50, 2)


PROBE = ["eval.probe.path=/sets/imagenet1k", "eval.probe.every_epochs=4"]


def test_a_probe_costs_time_and_is_named(tmp_path):
    config, without = load_run("swin_l_22k", PROBE), plan_of("swin_l_22k", PROBE)
    probe = manifest_of(tmp_path, classes=1000, train=10, validation=50_000).split("validation")
    plan = plan_of("swin_l_22k", PROBE, probe=probe)
    assert (plan.probe_samples, without.probe_samples) == (50_000, 0)
    # 23 = 90 / 4 and the end; two operations for each multiply-add.
    flop = 23 * 50_000 * 2 * plan.forward_macs_per_image
    assert (plan.cost.exaflop - without.cost.exaflop) * 1e18 == pytest.approx(flop, rel=1e-6)
    assert plan.cost.hours > without.cost.hours
    named = "50,000 images of /sets/imagenet1k, split validation, every 4 epochs, 23 times"
    assert named in render(config, plan)
    unknown = "/sets/imagenet1k, split validation, every 4 epochs, 23 times; not built, so not in"
    assert unknown in render(config, without)


def test_an_average_is_evaluated_too_and_costs_as_much_again(tmp_path):
    averaged = ["ema.decay=0.9999"]
    manifest = manifest_of(tmp_path, classes=1000, train=10_300)
    plan, without = (plan_of("swin_t_1k", more, manifest=manifest) for more in (averaged, []))
    flop = 300 * 50 * 2 * plan.forward_macs_per_image
    assert (plan.cost.exaflop - without.cost.exaflop) * 1e18 == pytest.approx(flop, rel=1e-4)
    said = "every epoch, 300 times, with the weights and with their average"
    assert said in render(load_run("swin_t_1k", averaged), plan)


def test_the_text_says_what_is_evaluated(tmp_path):
    config = load_run("swin_t_1k")
    plan = plan_of("swin_t_1k", manifest=manifest_of(tmp_path, classes=1000, train=10_300))
    assert "50 images of split validation, every epoch, 300 times" in render(config, plan)
    text = render(load_run("swin_l_22k"), plan_of("swin_l_22k"))
    assert "none: no held-out split, and no eval.probe" in text


def test_data_smaller_than_a_step_is_refused(tmp_path):
    manifest = manifest_of(tmp_path, classes=1000, train=700)
    with pytest.raises(ConfigError, match=r"more than the 700 samples.*global_size=512"):
        plan_of("swin_t_1k", manifest=manifest)


def test_without_shards_or_an_expected_count_there_is_no_plan():
    with pytest.raises(ConfigError, match="build the shards first"):
        plan_of("swin_t_1k", ["data.expected_train_samples=null"])


def test_zero_stages_divide_what_they_should():
    one = plan_of("swin_l_22k").memory
    two = plan_of("swin_l_22k", ["engine.zero_stage=2"]).memory
    three = plan_of("swin_l_22k", ["engine.zero_stage=3"]).memory
    assert one["gradients"] == one["parameters"] == 4 * 228_565_093
    assert one["master weights"] == two["master weights"] == -(-228_565_093 // 32) * 4
    assert two["gradients"] == -(-228_565_093 // 32) * 4
    assert two["parameters"] == one["parameters"] > three["parameters"]
    kept = plan_of("swin_l_22k", ["engine.activation_checkpointing=[full,full,full,full]"]).memory
    assert kept["activations"] < one["activations"] / 3


def test_offload_moves_what_it_says_to_the_host():
    kept = plan_of("swin_l_22k", ["ema.decay=0.999"])
    assert kept.host_memory == {}
    moved = plan_of("swin_l_22k", ["ema.decay=0.999", "engine.offload=optimizer"])
    share = 4 * -(-228_565_093 // 32)
    assert moved.host_memory == {
        "master weights": share,
        "moments": 2 * share,
        "average of weights": share,
        "gradients": share,
    }
    assert sum(kept.memory.values()) - sum(moved.memory.values()) == 4 * share
    overrides = ["engine.zero_stage=3", "engine.offload=optimizer_and_parameters"]
    both = plan_of("swin_l_22k", overrides)
    assert both.host_memory["parameters"] == share
    assert "parameters" not in both.memory
    overrides = ["engine.activation_checkpointing=[full_offload,none,none,none]"]
    first = plan_of("swin_l_22k", overrides)
    assert first.host_memory == {"activations": 64 * 2 * 56 * 56 * 192 * 4}
    assert "host memory" in render(load_run("swin_l_22k", overrides), first)
    assert "host memory" not in render(load_run("swin_l_22k"), plan_of("swin_l_22k"))


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("engine.precision=fp16", "give engine.precision=bf16"),
        ("optim.implementation=apex", "give optim.implementation=torch"),
        ("engine.layer_norm=apex", "give engine.layer_norm=torch"),
    ],
)
def test_what_only_a_gpu_does_is_refused_without_one(override, instead):
    plan_of("swin_l_22k", [override])
    with pytest.raises(ConfigError, match=instead):
        plan_of("swin_l_22k", [override, "cluster.device=cpu"])


def test_the_estimate_is_held_against_the_peak():
    estimate = {"parameters": 2**30, "activations": 3 * 2**30}
    found = compare_with_peak(estimate, 5.0)
    assert found == {"estimated_gib": 4.0, "peak_gib": 5.0, "gap_fraction": 0.25}


def test_the_text_says_every_number_a_person_asks_for():
    text = render(load_run("swin_l_22k"), plan_of("swin_l_22k"))
    for piece in (
        "14,197,122 samples",
        "21,841 classes",
        "228,565,093 parameters",
        "32 = 4 nodes x 8, cuda, ZeRO stage 1, bf16",
        "4096 = 32 ranks x 64 micro-batch x 2 accumulation",
        "311,940 = 90 epochs x 3,466; warm-up 17,330",
        "peak 0.001 = 0.001 x 4096 / 4096 (linear rule); from 1e-06, cosine to 1e-05",
        "3 kept",
        "GPU-hours",
        "not measured",
    ):
        assert piece in text, f"{piece!r} not in:\n{text}"


def test_the_text_names_the_preset_and_what_it_changes():
    overrides = ["preset=modern"]
    plan = plan_of("swin_l_22k_to_1k_384", overrides)
    text = render(load_run("swin_l_22k_to_1k_384", overrides), plan)
    for piece in (
        "plan of swin_l_22k_to_1k_384, preset modern",
        "peak 5e-05 = 5e-05 x 512 / 512 (linear rule); cosine to 1e-06",
        "AdamW, weight decay 1e-08, clipped at 5, 0.9 of the rate per layer down, "
        "average of weights 0.9999, ema is the result",
    ):
        assert piece in text, f"{piece!r} not in:\n{text}"
    released = ["preset=released"]
    text = render(load_run("swin_l_22k", released), plan_of("swin_l_22k", released))
    assert "cosine to 1e-05 counted from step 0, under the warm-up" in text
    assert json.loads(plan.to_json())["preset"] == "modern"


def test_an_average_costs_memory_and_disk():
    without = plan_of("swin_t_1k")
    plan = plan_of("swin_t_1k", ["ema.decay=0.999"])
    share = -(-28_288_354 // plan.world_size) * 4
    assert plan.memory == without.memory | {"average of weights": share}
    assert plan.checkpoint_bytes == 16 * 28_288_354


def test_a_full_disk_is_pointed_out():
    plan = plan_of("swin_l_22k", free_disk_bytes=10**9)
    assert "NOT ENOUGH" in render(load_run("swin_l_22k"), plan)


def test_the_plan_is_json():
    assert json.loads(plan_of("swin_t_1k").to_json())["global_batch"] == 1024


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("profile.first_step=400000", "5 after 400000 are more than the"),
        ("profile.ranks=[0,8]", "there is no rank 8 among 8"),
    ],
)
def test_steps_and_ranks_that_are_to_be_profiled_must_be_there(override, message):
    with pytest.raises(ConfigError, match=message):
        plan_of("swin_t_1k", ["profile.steps=5", override])
    plan_of("swin_t_1k", [override])
