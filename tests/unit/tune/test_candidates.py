"""What may be tried for a config, and what each is called."""

from itertools import pairwise

import pytest

from pretrain.config.load import load_run, vary
from pretrain.config.schema import RunConfig
from pretrain.errors import ConfigError
from pretrain.models.variants import shape_of
from pretrain.plan.derive import split_batch
from pretrain.plan.tuned import CHOICES, FIELDS, value_of
from pretrain.run_directory import MAY_CHANGE
from pretrain.tune.candidates import CHECKPOINTING_TRIED, Space, space_of


def space(
    config: RunConfig, world_size: int, typed: tuple[str, ...] = (), device: str = "cuda"
) -> Space:
    return space_of(config, shape_of(config.model), world_size, typed, device)


def test_a_cpu_has_no_choice_of_kernels():
    config = load_run("swin_l_22k")
    assert set(space(config, 8).choices) == set(CHOICES)
    assert set(space(config, 8, device="cpu").choices) == {"engine.compile"}


def test_micro_batches_divide_the_global_batch_in_whole_mixing_groups():
    config = load_run("swin_l_22k")
    assert space(config, 8).sizes == (64, 128, 256, 512)
    assert space(config, 32).sizes == (64, 128)
    for size in space(config, 8).sizes:
        chosen = vary(config, [f"batch.micro_size_max={size}"], "here")
        assert split_batch(chosen, 8) == (size, 512 // size)
    with pytest.raises(ConfigError, match="does not divide"):
        space(config, 3)


def test_sizes_that_hardly_differ_are_left_out_and_never_the_configs_own():
    unmixed = ["augment.mix_probability=0", "batch.global_size=5040", "batch.micro_size_max=84"]
    sizes = space(load_run("swin_l_22k", unmixed), 1).sizes
    assert 84 in sizes
    assert all(5040 % size == 0 for size in sizes)
    assert all(larger >= 1.4 * smaller for smaller, larger in pairwise(sizes))


def test_what_is_typed_is_settled():
    config = load_run("swin_l_22k", ["engine.compile=true"])
    free = space(config, 8)
    assert free.checkpointing == CHECKPOINTING_TRIED
    assert free.choices == CHOICES
    settled = space(config, 8, FIELDS)
    assert (settled.sizes, settled.checkpointing, settled.choices) == (
        (64,), (("none",) * 4,), {},
    )  # fmt: skip
    assert dict(settled.own.choices)["engine.compile"] == "true"


def test_the_configs_own_kind_of_checkpointing_takes_its_place_among_the_others():
    kinds = "[selective_attention,selective_attention,none,none]"
    config = load_run("swin_l_22k", [f"engine.activation_checkpointing={kinds}"])
    ordered = space(config, 8).checkpointing
    assert ordered[0] == ("none",) * 4
    assert ordered[-1] == ("full_offload",) * 4
    # 4 blocks recompute a third each, fewer than the 2 whole blocks of the first stage.
    own = ordered.index(tuple(config.engine.activation_checkpointing))
    assert own == ordered.index(("full", "none", "none", "none")) - 1


def test_a_candidate_is_what_a_config_would_say():
    config = load_run("swin_l_22k")
    own = space(config, 8).own
    assert own.label(own) == "micro-batch 64"
    other = own.choosing("engine.compile", True)
    assert other.label(own) == "micro-batch 64, compile true"
    assert (own.differences(own), other.differences(own)) == (0, 1)
    chosen = vary(config, other.overrides, "here")
    assert {field: value_of(chosen, field) for field in FIELDS} == other.values
    assert vary(config, own.overrides, "here") == config


@pytest.mark.parametrize("field", FIELDS)
def test_nothing_that_is_tuned_changes_what_is_learnt(field):
    assert field in MAY_CHANGE


@pytest.mark.parametrize("field", CHOICES)
def test_every_value_that_is_tried_is_one_that_a_config_may_have(field):
    own = space(load_run("swin_l_22k"), 8).own
    for value in CHOICES[field]:
        chosen = vary(load_run("swin_l_22k"), own.choosing(field, value).overrides, "here")
        assert value_of(chosen, field) == value
