"""Masked pre-training as its users run it, up to the fine-tuning of what it exports."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from test_training import check_picture, final_state, records, start, train, wait_for

from pretrain.convert.export import read_weights

MASKED = """\
data: {{path: {shards}, workers_per_rank: 1, eval_split: null}}
model: {{variant: swin_t, embed_dim: 16, depths: [1, 1, 2, 1], heads: [1, 2, 4, 8],
         image_size: 64, window_size: 4, num_classes: {classes}}}
masking: {{patch_size: 16, ratio: 0.6}}
optim: {{lr: 1.0e-3}}
schedule: {{epochs: 2, warmup_epochs: 0.5, kind: multistep, milestone_epochs: [1]}}
batch: {{global_size: 16, micro_size_max: 4}}
augment: {{crop_scale: [0.67, 1.0], randaugment: null, erase_probability: 0.0, mix_probability: 0.0,
           label_smoothing: 0.0}}
checkpoint: {{every_steps: 4, keep_last: 5}}
log: {{every_steps: 2}}
wandb: {{mode: disabled}}
engine: {{precision: fp32, threads_per_rank: 1}}
cluster: {{device: cpu}}
"""
FINE_TUNING = [
    "masking=null", "data.eval_split=validation", "model.image_size=128", "model.window_size=8",
    "schedule={epochs: 1, kind: cosine, milestone_epochs: []}", "augment.label_smoothing=0.1",
    "eval.resize=144", "optim.layer_decay=0.8",
]  # fmt: skip


@pytest.fixture
def config(tmp_path, small_shards):
    path = tmp_path / "masked.yaml"
    path.write_text(MASKED.format(shards=small_shards.path, classes=small_shards.classes))
    return path


@pytest.mark.slow
def test_pretraining_on_masked_images_and_fine_tuning_from_it(config, tmp_path):
    output = train(config)
    run = tmp_path / "runs" / "masked"
    assert "restore 10 of 16 squares of 16 pixels, no labels" in output
    written = records(run)
    assert written[-1]["step"] == 12
    rates = {line["step"]: line["train/learning_rate"] for line in written}
    assert rates[6] == pytest.approx(1e-3)
    assert rates[8] == pytest.approx(1e-4)
    assert not any(key.startswith("eval/") for line in written for key in line)
    assert (run / "report.html").stat().st_size > 1000
    check_picture(run)

    exported = json.loads((run / "export" / "config.json").read_text())
    assert (exported["classes"], exported["model"]["variant"]) == ([], "swin_t")
    tensors = load_file(run / "export" / "model.safetensors")
    assert not {name for name in tensors if "head" in name or "mask" in name or "decoder" in name}
    of_checkpoint = read_weights(run / "checkpoints" / "step_00000012")
    assert of_checkpoint.classes is None
    assert of_checkpoint.tensors.keys() == tensors.keys()
    assert all(torch.equal(of_checkpoint.tensors[name], tensors[name]) for name in tensors)

    output = train(config, "name=tuned", "init_from=masked", *FINE_TUNING)
    assert f"{len(tensors) - 5} parameters copied" in output  # one table for each of five blocks
    assert "5 relative position bias tables resized (bicubic); head fresh" in output
    assert records(tmp_path / "runs" / "tuned")[-1]["eval/images"] == 20


@pytest.mark.slow
def test_a_killed_masked_run_resumes_to_the_bit(config, tmp_path):
    train(config, "name=twin")
    process = start(config, "name=killed")
    killed = tmp_path / "runs" / "killed"
    wait_for(killed / "checkpoints" / "step_00000004", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    output = train(config, "name=killed")
    assert "resumed: checkpoint step_000000" in output
    assert records(killed) == records(tmp_path / "runs" / "twin")
    twin_state, killed_state = final_state(tmp_path / "runs" / "twin"), final_state(killed)
    assert twin_state.keys() == killed_state.keys()
    assert {"master|mask_token", "exp_avg|decoder.weight"} < twin_state.keys()
    for key, value in twin_state.items():
        assert torch.equal(value, killed_state[key]), key


@pytest.mark.slow
def test_two_ranks_are_given_the_masks_of_one_and_masked_runs_go_on_from_each_other(
    config, tmp_path
):
    train(config, "name=one")
    train(config, "name=two", "engine.zero_stage=3", ranks=2)
    one, two = records(tmp_path / "runs" / "one"), records(tmp_path / "runs" / "two")
    for ours, theirs in zip(one, two, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
    output = train(config, "name=more", "init_from=one", "schedule.epochs=2")
    assert "head left out" in output
    more = records(tmp_path / "runs" / "more")
    assert more[0]["train/loss"] != one[0]["train/loss"]
