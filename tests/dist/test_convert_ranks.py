"""ZeRO checkpoints as DeepSpeed itself writes them on two ranks, read without it."""

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file

from pretrain.convert.pickles import load_pickled
from pretrain.convert.read import load
from pretrain.errors import CheckpointError

pytestmark = pytest.mark.slow

MODES = [[0, "fp32"], [1, "bf16"], [2, "fp32"], [3, "fp32"]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("zero")
    run_ranks("cases_convert:save_zero", 2, str(directory), MODES)
    return directory


@pytest.mark.parametrize(("stage", "precision"), MODES)
def test_the_weights_are_those_that_deepspeed_gathers(saved, stage, precision):
    name = f"stage_{stage}_{precision}"
    expected = load_file(saved / f"{name}.safetensors")
    for path in (saved / name, saved / name / "global_step1"):
        read = load(path, image_size=64)
        assert read.layout == "deepspeed"
        assert read.tensors.keys() == expected.keys()
        for key, value in read.tensors.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, expected[key]), key


def test_one_file_of_it_is_a_checkpoint_too(saved):
    path = saved / "stage_1_bf16" / "global_step1" / "mp_rank_00_model_states.pt"
    assert load_pickled(path)["ds_version"]
    assert load(path, image_size=64).model.embed_dim == 12


def test_a_missing_rank_and_a_wrong_latest_are_refused(saved):
    directory = saved / "stage_2_fp32"
    (directory / "latest").write_text("global_step9")
    with pytest.raises(CheckpointError, match="names 'global_step9', which is not there"):
        load(directory)
    (directory / "latest").write_text("global_step1")
    next(directory.glob("*/*pp_rank_1_*optim*")).unlink()
    with pytest.raises(CheckpointError, match="of 2 ranks, got 1"):
        load(directory)
    whole = saved / "stage_3_fp32" / "global_step1"
    for path in whole.glob("*_optim_states.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match="stage 3 without"):
        load(whole)
