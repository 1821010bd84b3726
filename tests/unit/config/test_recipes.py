"""Every published recipe, number by number, against the facts: no expected value is computed by
what is under test.

The facts are those of the official repository at f82860b and of the papers; rates are typed for
a batch of 512, as the repository writes them, and scaled here.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from recipes import load

from pretrain.config.load import config_names
from pretrain.step_inputs import rate


class Facts(NamedTuple):
    images: int
    epochs: int
    warmup_epochs: int
    batch: int
    base_lr: float
    """Peak at a batch of 512; warm-up start and floor likewise."""
    base_start: float
    base_floor: float
    weight_decay: float
    image_size: int
    window: int
    kind: str = "cosine"
    spans: bool = False
    clip: float = 5.0
    layer_decay: float = 1.0
    mixes: bool = True
    ema: float | None = None
    milestone: int | None = None
    """Epoch after which ``multistep`` has a tenth of the rate."""

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch

    @property
    def scale(self) -> float:
        return self.batch / 512


IMAGES_22K, IMAGES_1K = 14_197_122, 1_281_167
PRETRAINING = Facts(IMAGES_22K, 90, 5, 4096, 1.25e-4, 1.25e-7, 1.25e-6, 0.05, 224, 7)
FINE_TUNING = Facts(IMAGES_1K, 30, 5, 1024, 2e-5, 2e-8, 2e-7, 1e-8, 224, 7)
SCRATCH = Facts(IMAGES_1K, 300, 20, 1024, 5e-4, 5e-7, 5e-6, 0.05, 224, 7)
SIMMIM = Facts(IMAGES_1K, 100, 20, 2048, 1.25e-3, 2.5e-7, 2.5e-7, 0.05, 224, 7, layer_decay=0.8)
MASKED = Facts(
    IMAGES_1K, 800, 10, 2048, 1e-4, 5e-7, 0.0, 0.05, 192, 6, kind="multistep", mixes=False,
    milestone=700,
)  # fmt: skip
# Not Swin's: ConvNeXt's fine-tuning, with a decay per block that spans what its own does.
MODERN = FINE_TUNING._replace(
    warmup_epochs=0, batch=512, base_lr=5e-5, base_floor=1e-6, layer_decay=0.9, mixes=False,
    ema=0.9999,
)  # fmt: skip
# The paper's fine-tuning: constant 1e-5 at a batch of 1024.
PAPER_TUNING = FINE_TUNING._replace(kind="constant", base_lr=5e-6, warmup_epochs=0, clip=1.0)


def presets(facts: Facts, paper: Facts, modern: Facts | None = None) -> dict[str, Facts]:
    found = {"repository": facts, "released": facts._replace(spans=True), "paper": paper}
    return found | ({"modern": modern} if modern else {})


def at_384(facts: Facts) -> Facts:
    return facts._replace(image_size=384, window=12)


TUNING_384 = presets(at_384(FINE_TUNING), at_384(PAPER_TUNING), at_384(MODERN))
# ConvNeXt's decay over its 12 groups and the head is 0.8 from 22K, and 0.7 from 1K.
TUNING_384_FROM_1K = TUNING_384 | {"modern": at_384(MODERN)._replace(layer_decay=0.83)}
TUNING_224 = presets(FINE_TUNING, PAPER_TUNING, MODERN)
PAPER_PRETRAINING = PRETRAINING._replace(kind="linear", weight_decay=0.01, clip=1.0)

# V2's paper and repository agree.
V2_PRETRAINING = PRETRAINING._replace(weight_decay=0.1, image_size=192, window=12)
V2_TUNING_256 = FINE_TUNING._replace(image_size=256, window=16)
V2_TUNING_384 = FINE_TUNING._replace(image_size=384, window=24)
V2_MODERN_256 = MODERN._replace(image_size=256, window=16)
V2_MODERN_384 = MODERN._replace(image_size=384, window=24)
V2_DROP_PATH = {"b": 0.2, "l": 0.2}
V2_SCRATCH_8 = SCRATCH._replace(image_size=256, window=8)
V2_SCRATCH_16 = SCRATCH._replace(image_size=256, window=16)
# Swin-MLP is of V1's paper, which clips at 1.
MLP_SCRATCH = SCRATCH._replace(image_size=256, window=8)

# Recipe: its presets, and the drop path of each model.
SCRATCH_DROP_PATH = {"t": 0.2, "s": 0.3, "b": 0.5}
DROP_PATH = {"t": 0.1, "s": 0.2, "b": 0.2, "l": 0.2}
ROWS: dict[str, tuple[dict[str, Facts], dict[str, float]]] = {
    "swin_{}_22k": (presets(PRETRAINING, PAPER_PRETRAINING), DROP_PATH),
    "swin_{}_22k_to_1k_224": (TUNING_224, DROP_PATH),
    "swin_{}_22k_to_1k_384": (TUNING_384, DROP_PATH),
    "swin_{}_1k": (presets(SCRATCH, SCRATCH._replace(clip=1.0)), SCRATCH_DROP_PATH),
    "swin_{}_1k_to_384": (TUNING_384_FROM_1K, {"b": 0.5}),
    "swin_mlp_{}_1k": (presets(SCRATCH, SCRATCH._replace(clip=1.0)), {"b": 0.5}),
    "swin_mlp_t_{}_1k": (
        presets(MLP_SCRATCH, MLP_SCRATCH._replace(clip=1.0)), {"c6": 0.2, "c12": 0.2, "c24": 0.2}
    ),
    "swin_t_{}_1k": (presets(MLP_SCRATCH, MLP_SCRATCH._replace(clip=1.0)), {"c24": 0.2}),
    "swinv2_{}_1k_window8": (presets(V2_SCRATCH_8, V2_SCRATCH_8), SCRATCH_DROP_PATH),
    "swinv2_{}_1k_window16": (presets(V2_SCRATCH_16, V2_SCRATCH_16), SCRATCH_DROP_PATH),
    # Nothing decays under the warm-up, so that what was released is what the repository does.
    "swin_{}_simmim": ({"repository": MASKED, "released": MASKED, "paper": MASKED}, {"b": 0.0}),
    "swin_{}_simmim_to_1k": (presets(SIMMIM, SIMMIM), {"b": 0.1}),
    "swinv2_{}_22k": (presets(V2_PRETRAINING, V2_PRETRAINING), V2_DROP_PATH),
    "swinv2_{}_22k_to_1k_256": (
        presets(V2_TUNING_256, V2_TUNING_256, V2_MODERN_256), V2_DROP_PATH
    ),
    "swinv2_{}_22k_to_1k_384": (
        presets(V2_TUNING_384, V2_TUNING_384, V2_MODERN_384), V2_DROP_PATH
    ),
}  # fmt: skip
CASES = [
    (row.format(model), preset, drop_path, facts)
    for row, (of_row, models) in ROWS.items()
    for model, drop_path in models.items()
    for preset, facts in of_row.items()
]

GIANT = "swinv2_g_22k"
PAPER_DROP_PATH = {"swin_b_1k_to_384": 0.1}
SMALL_MODEL_LAYER_DECAY = 0.8
"""Of the modern preset for Swin-T, which has half the layers."""


def test_every_recipe_is_here():
    swins = {name for name in config_names() if name.startswith("swin")}
    assert swins == {name for name, *_ in CASES} | {GIANT}


@pytest.mark.parametrize("preset", ["repository", "paper"])
def test_the_giant_is_the_papers_second_stage(preset):
    """arXiv 2111.09883, appendix A2.2; the set of 70 million images is not published."""
    config, plan = load(GIANT, preset)
    assert (plan.parameters, plan.global_batch, plan.peak_lr) == (3_087_326_257, 9216, 1.4e-3)
    assert plan.total_steps == 30 * (IMAGES_22K // 9216)
    of_70_million = 30 * 70_000_000 / 9216
    assert plan.warmup_steps / plan.total_steps == pytest.approx(20_000 / of_70_million, rel=2e-3)
    optim, model, augment = config.optim, config.model, config.augment
    assert (optim.weight_decay, optim.clip_grad_norm, optim.layer_decay) == (0.1, 100.0, 0.87)
    assert (model.image_size, model.window_size, model.drop_path) == (192, 12, 0.3)
    assert (augment.mixes, augment.erase_probability) == (False, 0.25)
    assert config.schedule.kind == "cosine"
    assert sum(plan.memory.values()) < 40 * 2**30  # of one of the paper's GPUs


@pytest.mark.parametrize(("name", "preset", "drop_path", "facts"), CASES)
def test_the_numbers_are_the_published_ones(name, preset, drop_path, facts):
    config, plan = load(name, preset)
    assert (config.preset, plan.preset) == (preset, preset)
    assert plan.steps_per_epoch == facts.steps_per_epoch
    assert plan.total_steps == facts.epochs * facts.steps_per_epoch
    assert plan.warmup_steps == facts.warmup_epochs * facts.steps_per_epoch
    assert plan.global_batch == facts.batch
    assert plan.peak_lr == pytest.approx(facts.base_lr * facts.scale, rel=1e-12)
    if facts.kind == "multistep":
        assert plan.min_lr == pytest.approx(facts.base_lr * facts.scale / 10, rel=1e-12)
        assert plan.milestone_steps == (facts.milestone * facts.steps_per_epoch,)
    elif facts.kind != "constant":
        assert plan.min_lr == pytest.approx(facts.base_floor * facts.scale, rel=1e-12)
    if facts.warmup_epochs:
        assert plan.warmup_lr == pytest.approx(facts.base_start * facts.scale, rel=1e-12)
    expected_drop_path = PAPER_DROP_PATH.get(name, drop_path) if preset == "paper" else drop_path
    assert config.model.drop_path == expected_drop_path
    assert (config.model.image_size, config.model.window_size) == (facts.image_size, facts.window)
    assert config.optim.weight_decay == facts.weight_decay
    assert config.optim.clip_grad_norm == facts.clip
    assert config.augment.mixes == facts.mixes
    assert config.ema.decay == facts.ema
    small = preset == "modern" and config.model.variant == "swin_t"
    assert config.optim.layer_decay == (SMALL_MODEL_LAYER_DECAY if small else facts.layer_decay)
    # Short side before the crop, 8/7 of it rounded down; 384 is squashed.
    assert config.eval.resize == {192: 219, 224: 256, 256: 292, 384: None}[facts.image_size]
    tuned_v2 = name.startswith("swinv2") and "_to_1k" in name
    windows_before = (12, 12, 12, 6) if tuned_v2 else (0, 0, 0, 0)
    assert config.model.pretrained_window_sizes == windows_before


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES}))
def test_what_all_recipes_share(name):
    config, _ = load(name)
    assert config.preset == "repository"
    assert (config.optim.betas, config.optim.eps) == ((0.9, 0.999), 1e-8)
    augment = config.augment
    assert (augment.crop_ratio, augment.flip_probability) == ((3 / 4, 4 / 3), 0.5)
    if name == "swin_b_simmim":
        assert (augment.crop_scale, augment.crop_filter) == ((0.67, 1.0), "bilinear")
        assert (augment.randaugment, augment.erase_probability) == (None, 0.0)
        assert (augment.mix_probability, augment.label_smoothing) == (0.0, 0.0)
        assert config.masking is not None
        assert (config.masking.patch_size, config.masking.ratio) == (32, 0.6)
    else:
        assert (augment.crop_scale, augment.crop_filter) == ((0.08, 1.0), "bicubic")
        assert (augment.randaugment, augment.erase_probability) == ("rand-m9-mstd0.5-inc1", 0.25)
        mixing = (augment.mixup_alpha, augment.cutmix_alpha, augment.mix_probability)
        assert mixing == (0.8, 1.0, 1.0)
        assert (augment.mix_switch_probability, augment.label_smoothing) == (0.5, 0.1)
        assert config.masking is None
    assert config.data.expected_train_samples in (IMAGES_22K, IMAGES_1K)
    assert config.model.num_classes == (21_841 if name.endswith("_22k") else 1000)
    assert config.engine.precision == "bf16"
    assert (config.data.eval_split is None) == name.endswith(("_22k", "_simmim"))


def whole_curve(facts: Facts) -> np.ndarray:
    """Return the rate of every step, from the sentences of the recipes in extended precision."""
    total = facts.epochs * facts.steps_per_epoch
    warmup = facts.warmup_epochs * facts.steps_per_epoch
    step = np.arange(total, dtype=np.longdouble)
    peak, start, floor = (
        np.longdouble(rate) * np.longdouble(facts.scale)
        for rate in (facts.base_lr, facts.base_start, facts.base_floor)
    )
    from_where = 0 if facts.spans else warmup
    done = (step - from_where) / (total - from_where)
    after = {
        "constant": np.full_like(step, peak),
        "linear": peak - (peak - floor) * done,
        "cosine": floor + (peak - floor) * (1 + np.cos(np.longdouble(np.pi) * done)) / 2,
        "multistep": np.where(
            step < (facts.milestone or 0) * facts.steps_per_epoch, peak, peak / np.longdouble(10)
        ),
    }[facts.kind]
    rising = start + (peak - start) * step / max(warmup, 1)
    return np.where(step < warmup, rising, after)


# The curves that differ, each by one recipe and preset that has it.
CURVES = {
    facts._replace(clip=0, weight_decay=0, image_size=0, window=0): (name, preset, facts)
    for name, preset, _, facts in CASES[::-1]
}


@pytest.mark.parametrize(("name", "preset", "facts"), CURVES.values())
def test_the_whole_curve_of_the_learning_rate(name, preset, facts):
    config, plan = load(name, preset)
    job: Any = SimpleNamespace(config=config, plan=plan)
    ours = [rate(job, step) for step in range(plan.total_steps)]
    expected = whole_curve(facts)
    assert len(ours) == len(expected)
    worst = np.abs(np.array(ours) / expected - 1).max()
    assert worst < 1e-9  # near the floor the cosine cancels


# Computed in 40-digit arithmetic: half of the warm-up, its end, half of the run, the last step.
GOLDEN = {
    ("swin_l_22k", "repository"): {
        0: 1e-6, 8665: 0.0005005, 17330: 0.001, 155970: 0.0005506728379343345,
        311939: 1.0000000028143621e-05,
    },
    ("swin_l_22k", "released"): {
        0: 1e-6, 8665: 0.0005005, 17330: 0.000992479837741043, 155970: 0.000505,
        311939: 1.0000000025103415e-05,
    },
    ("swin_l_22k", "paper"): {
        0: 1e-6, 17330: 0.001, 155970: 0.0005341176470588235, 311939: 1.0003360374732697e-05
    },
    ("swin_b_22k_to_1k_384", "repository"): {
        0: 4e-8, 3127: 2.0016805755395683e-05, 6255: 4e-05, 18765: 2.631853648862396e-05,
        37529: 4.0000009989420683e-07,
    },
    ("swin_b_22k_to_1k_384", "released"): {
        6255: 3.7347302994931886e-05, 18765: 2.02e-05, 37529: 4.00000069370977e-07
    },
    ("swin_b_22k_to_1k_384", "paper"): {0: 1e-5, 37529: 1e-5},
    ("swin_b_22k_to_1k_384", "modern"): {
        0: 5e-5, 18765: 4.2824116139070415e-05, 37530: 2.55e-05, 75059: 1.0000000214594562e-06
    },
    ("swin_t_1k", "repository"): {
        0: 1e-6, 12510: 0.0005005, 25020: 0.001, 187650: 0.0005604224156711374,
        375299: 1.0000000019908763e-05,
    },
    ("swin_t_1k", "released"): {25020: 0.0009891830623632338, 187650: 0.000505},
    ("swin_b_simmim", "repository"): {
        0: 2e-6, 3125: 0.000201, 6250: 4e-4, 437499: 4e-4, 437500: 4e-5, 499999: 4e-5
    },
    ("swin_b_simmim_to_1k", "repository"): {
        0: 1e-6, 6250: 0.0025005, 12500: 0.005, 31250: 0.003457017239196542,
        62499: 1.0000049338152385e-06,
    },
    ("swin_b_simmim_to_1k", "released"): {12500: 0.004522637977440181, 31250: 0.0025005},
}  # fmt: skip


@pytest.mark.parametrize(("name", "preset"), GOLDEN)
def test_golden_rates(name, preset):
    config, plan = load(name, preset)
    job: Any = SimpleNamespace(config=config, plan=plan)
    expected = GOLDEN[name, preset]
    assert [rate(job, step) for step in expected] == pytest.approx(
        list(expected.values()), rel=1e-12
    )
