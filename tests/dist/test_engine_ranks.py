"""The engine on two gloo ranks against plain torch in one process."""

import math
from typing import Any

import pytest
from ranks import RanksFailed, run_rank_alone, run_ranks

REDUCTION_ROUNDING = 2e-6
"""fp32 sums in another order: a few units in the last place of losses and norms near 2."""


@pytest.fixture(scope="module")
def suite() -> dict[str, Any]:
    return run_ranks("cases_engine:suite", 2, [1, 2, 3])[0]


def test_every_stage_equals_plain_torch(suite):
    assert len(suite["parity"]) == 12  # three stages, accumulation 1 and 4, clipped and not
    for found in suite["parity"]:
        assert found["loss"] < REDUCTION_ROUNDING
        assert found["norm"] < REDUCTION_ROUNDING
        assert found["weights"] < 5e-6
        assert found["logits"] < 5e-6
        assert found["images"] == 8
        assert found["logits_fp32"]


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_nan_on_one_rank_skips_the_step_on_all(suite, stage):
    found = suite["non_finite"][stage]
    assert found["skipped"]
    assert found["norm"] == "inf"
    assert found["unchanged"]
    assert found["state"] == {"optimizer_step": 2, "skipped_steps": 1}
    assert found["resumed"] == found["state"]
    assert found["as_if_unseen"]


def test_a_first_step_whose_norm_overflows_leaves_no_trace(suite):
    for found in suite["overflowing"]:
        assert found == {"skipped": True, "unchanged": True, "as_if_unseen": True}


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_ranks_compute_with_equal_weights_and_a_changed_bit_shows(suite, stage):
    found = suite["non_finite"][stage]
    equal, changed = found["digests"]
    assert len(set(equal)) == 1
    assert changed[0] == equal[0] != changed[1]


def test_clipping_off_is_off(suite):
    for norm, given in suite["unclipped"]:
        assert norm > 1.0  # above DeepSpeed's own default, so that it would show
        assert math.isclose(given, norm, rel_tol=1e-5)


def test_clipping_scales_to_the_norm(suite):
    for norm, given in suite["clipped"]:
        assert norm > 1.0
        assert math.isclose(given, 0.05, rel_tol=1e-4)


def test_bad_calls_are_refused(suite):
    wrong_size, too_few, another_model, frozen = suite["bad_calls"]
    assert "expected 4 images and targets in a micro-batch, got 3 and 3" in wrong_size
    assert "expected 2 micro-batches, got 1" in too_few
    assert another_model.splitlines() == [
        "parameter head.weight: expected (7, 23) as in the model, got (8, 23) in the checkpoint",
        "parameter tail.weight: expected none as in the model, got (3,) in the checkpoint",
    ]
    assert "norm.weight" in frozen


def test_micro_batches_are_drawn_when_needed(suite):
    passes = [[f"drawn {number}", "forward", "meanwhile"] for number in range(2)]
    assert suite["lazily"] == [*passes[0], *passes[1]]


def test_steps_do_not_wait_for_the_device_to_be_timed(suite):
    assert suite["device_waits"] == [0, 0, 0]


def test_weights_start_from_rank_zero(suite):
    assert suite["starts_as_rank_zero"] == [[True] * 3] * 2


def test_stage_3_leaves_torch_linear_alone(suite):
    assert suite["linear_untouched"] == "torch._C._nn"


def test_bf16_follows_autocast_with_fp32_masters(suite):
    found = suite["bf16"]
    for case in found["parity"]:
        # The reference rounds in bf16 in the same places; one rounding that forks is worth 1e-3.
        assert case["loss"] < 1e-3
        assert case["norm"] < 1e-2
        assert case["logits_fp32"]
    for stage, reduce_dtype in ((1, "fp32"), (3, "fp32"), (1, "bf16")):
        assert all(found[f"masters_exact_{stage}_{reduce_dtype}"])
    assert found["loss_1_fp32"] != found["loss_1_bf16"]  # the coarser reduction is really on
    assert max(map(abs, _minus(found["loss_1_fp32"], found["loss_1_bf16"]))) < 5e-3


def test_evaluating_leaves_training_as_it_was(suite):
    assert suite["evaluation_between"] == [True, True, True]


def test_swin_recomputing_activations_changes_nothing(suite):
    losses = suite["swin"]
    for stage in ("1", "2", "3"):
        assert losses[f"{stage} full"] == losses[f"{stage} none"]
        # Stages differ only where a bf16 rounding forks.
        assert max(map(abs, _minus(losses[f"{stage} none"], losses["1 none"]))) < 2e-3
    assert losses["1 none"][0] != losses["1 none"][2]


@pytest.mark.parametrize("variant", ["swinv2_t", "swin_mlp_t_c24"])
def test_the_other_families_train_the_same_with_parameters_divided_or_whole(suite, variant):
    whole, divided, recomputed = (
        suite["families"][f"{variant} {how}"] for how in ("1 none", "3 none", "3 full")
    )
    assert max(map(abs, _minus(whole, divided))) < 2e-3
    assert divided == recomputed
    assert whole[0] != whole[2]


def _minus(left: list[float], right: list[float]) -> list[float]:
    return [a - b for a, b in zip(left, right, strict=True)]


def test_works_alone_silently_and_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    ended = run_rank_alone("cases_engine:alone")
    found = ended.result
    for losses in found["losses"][:3]:
        assert max(map(abs, _minus(losses, found["expected"]))) < REDUCTION_ROUNDING
    assert found["compilers"] == found["extensions"] == []
    # Gloo of older torch (2.8) greets.
    said = [line for line in ended.stdout.splitlines() if not line.startswith("[Gloo]")]
    assert (said, ended.stderr) == ([], "")


@pytest.mark.slow
def test_timeout_reaches_zero_groups(tmp_path):
    with pytest.raises(RanksFailed) as failure:
        run_ranks("cases_engine:hang", 2, str(tmp_path))
    assert failure.value.return_codes == [3, 0]
    assert "gave up" in str(failure.value)
