"""``python -m pretrain`` as its users run it: real shards, real ranks, real deaths."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.augment.__main__ import main as augment
from pretrain.checkpoint.resume import newest_valid
from pretrain.convert.__main__ import main as convert
from pretrain.metrics.names import METRICS

CONFIG = """\
data: {{path: {shards}, workers_per_rank: 1}}
model: {{variant: swin_t, embed_dim: 16, depths: [1, 1, 2, 1], heads: [1, 2, 4, 8],
         image_size: 32, window_size: 4, num_classes: {classes}, drop_path: 0.1}}
optim: {{lr: 1.0e-3}}
schedule: {{epochs: 2, warmup_epochs: 0.5}}
batch: {{global_size: 16, micro_size_max: 4}}
augment: {{mix_group: 4}}
eval: {{resize: 36, batch_size_per_rank: 16}}
checkpoint: {{every_steps: 4, keep_last: 2}}
log: {{every_steps: 2}}
wandb: {{mode: disabled}}
engine: {{precision: fp32, threads_per_rank: 1}}
cluster: {{device: cpu}}
"""

SCORES = ("loss", "top1_fraction", "top5_fraction", "images")
NOT_OF_A_SMALL_RUN = {
    "train/loss_scale": "of fp16 only, which needs a GPU",
    "perf/flop_utilisation_fraction": "of devices whose peak is known",
    **{f"eval/ema_{score}": "needs ema.decay" for score in SCORES},
    **{f"eval/probe_{score}": "needs eval.probe" for score in SCORES},
    **{f"eval/probe_ema_{score}": "needs both" for score in SCORES},
}
"""Metrics that the run above does not record, with the reason."""


@pytest.fixture
def config(tmp_path, small_shards):
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(shards=small_shards.path, classes=small_shards.classes))
    return path


def start(config: Path, *overrides: str, ranks: int = 1) -> subprocess.Popen[str]:
    """Start training under torchrun, or alone."""
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", "-m"]
    command += ["pretrain", "--config", str(config), *overrides]
    return subprocess.Popen(
        command,
        cwd=config.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def train(config: Path, *overrides: str, ranks: int = 1) -> str:
    process = start(config, *overrides, ranks=ranks)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def records(run: Path) -> list[dict]:
    """The record without what differs between any two runs: times and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = ("time", "attempt", "run/", "perf/", "memory/")
    return [
        {key: value for key, value in line.items() if not key.startswith(measured)}
        for line in lines
    ]


def final_state(run: Path) -> dict[str, torch.Tensor]:
    reader, refusals = newest_valid(run / "checkpoints")
    assert reader is not None, refusals
    return {
        f"{kind}|{name}": reader.full(kind, name)
        for kind in ("master", "exp_avg", "exp_avg_sq")
        for name in reader.shapes
    }


def check_picture(run: Path) -> None:
    """What a run drew of its first step is what is drawn of it later, and was drawn once."""
    later = run.with_name(f"{run.name}.png")
    assert augment(["preview", "--run", str(run), "--out", str(later)]) == 0
    assert (run / "augmentation.png").read_bytes() == later.read_bytes()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    drawn = [event for event in events if event["event"].startswith("augmentation")]
    assert [(event["event"], event["attempt"]) for event in drawn] == [("augmentation_drawn", 1)]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_a_killed_run_resumes_to_the_bit(config, tmp_path):
    between = "log.every_steps=3"  # checkpoints fall in mid-interval
    train(config, "name=twin", between, "engine.overlap_augmentation=false")
    twin = tmp_path / "runs" / "twin"
    lines = (twin / "metrics.jsonl").read_text().splitlines()
    recorded = {name for line in lines for name in json.loads(line) if "/" in name}
    assert recorded == METRICS.keys() - NOT_OF_A_SMALL_RUN.keys()

    process = start(config, "name=killed", between)
    killed = tmp_path / "runs" / "killed"
    wait_for(killed / "checkpoints" / "step_00000004", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    damaged = killed / "checkpoints" / "step_00000099"
    shutil.copytree(killed / "checkpoints" / "step_00000004", damaged)
    output = train(config, "name=killed", between)

    assert f"checkpoint refused: reason {damaged}" in output
    check_picture(killed)
    assert "resumed: checkpoint step_000000" in output
    assert records(killed) == records(twin)
    twin_state, killed_state = final_state(twin), final_state(killed)
    assert twin_state.keys() == killed_state.keys()
    for key, value in twin_state.items():
        assert torch.equal(value, killed_state[key]), key


def test_a_signal_saves_and_the_next_start_goes_on(config, tmp_path):
    process = start(config, "checkpoint.every_steps=100000", "schedule.epochs=40")
    run = tmp_path / "runs" / "small"
    wait_for(run / "metrics.jsonl", process)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = start(config, "checkpoint.every_steps=100000", "schedule.epochs=40")
    refusal, _ = second.communicate(timeout=60)
    assert (second.returncode, refusal.count("\n")) == (2, 1)
    assert f"is being trained by process {process.pid} on " in refusal
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "stop requested: signal SIGTERM" in output
    progress = json.loads((run / "progress.json").read_text())
    assert progress["state"] == "stopped"
    assert progress["last_checkpoint_step"] == progress["step"] > 0


@pytest.mark.slow
def test_two_ranks_learn_what_one_does_and_one_continues_what_two_began(config, tmp_path):
    train(config, "name=one")
    train(config, "name=two", "engine.zero_stage=2", ranks=2)
    one, two = records(tmp_path / "runs" / "one"), records(tmp_path / "runs" / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    # Drop path and reduction order aside, both saw the same pixels and targets in each step.
    assert one[0]["train/loss"] == pytest.approx(two[0]["train/loss"], rel=1e-5)
    assert one[-1]["eval/images"] == two[-1]["eval/images"]
    check_picture(tmp_path / "runs" / "two")

    last = tmp_path / "runs" / "two" / "checkpoints"
    newest = max(path.name for path in last.iterdir())
    for path in last.iterdir():  # take the end away, so that something is left to train
        if path.name == newest:
            path.rename(tmp_path / "moved")
    output = train(config, "name=two")
    assert "resumed" in output
    assert "started: step" in output
    again = records(tmp_path / "runs" / "two")
    assert [line["step"] for line in again] == [line["step"] for line in two]
    assert again[-1]["eval/images"] == two[-1]["eval/images"]


def test_fine_tuning_is_a_config(config, tmp_path, small_shards):
    probe = Path(os.path.relpath(small_shards.path, tmp_path))
    train(config, "schedule.epochs=1", f"eval.probe.path={probe}")
    last = records(tmp_path / "runs" / "small")[-1]
    for name in ("loss", "images", "top1_fraction", "top5_fraction"):
        assert last[f"eval/probe_{name}"] == last[f"eval/{name}"]
    output = train(
        config,
        "name=tuned",
        "init_from=small",
        "model.image_size=64",
        "model.window_size=8",
        "eval.resize=72",
        "schedule.epochs=1",
    )
    assert "relative position bias tables resized" in output
    export = json.loads((tmp_path / "runs" / "tuned" / "export" / "config.json").read_text())
    assert export["model"]["window_size"] == 8
    assert (tmp_path / "runs" / "tuned" / "report.html").stat().st_size > 1000


@pytest.mark.slow
def test_a_run_from_any_layout_is_the_run_from_our_export(config, tmp_path, small_shards):
    # One window size in all stages, as some layouts need.
    shape = ["model.image_size=64", "model.window_size=2", "eval.resize=72", "schedule.epochs=1"]
    train(config, "name=first", *shape)
    export = tmp_path / "runs" / "first" / "export"
    sources = {"ours": export, "bare": tmp_path / "bare.safetensors"}
    shutil.copy(export / "model.safetensors", sources["bare"])
    for target in ("official", "timm", "huggingface", "torchvision", "mmdetection"):
        directory = target in ("timm", "huggingface")
        sources[target] = tmp_path / (target if directory else f"{target}.pth")
        assert convert([str(export), str(sources[target]), "--to", target]) == 0
    final = {}
    for name, source in sources.items():
        silent = [f"init_classes={small_shards.path}"] if name == "torchvision" else []
        output = train(config, f"name=from_{name}", f"init_from={source}", *silent, *shape)
        assert "initial weights" in output
        assert "head copied" in output
        final[name] = final_state(tmp_path / "runs" / f"from_{name}")
    for name, state in final.items():
        assert state.keys() == final["ours"].keys()
        for key, value in state.items():
            assert torch.equal(value, final["ours"][key]), (name, key)


@pytest.mark.slow
def test_the_average_is_evaluated_too_and_is_what_is_exported(config, tmp_path):
    modern = ["ema.decay=0.9", "optim.layer_decay=0.7", "augment.mix_probability=0.0"]
    train(config, "name=average", *modern)
    train(config, "name=raw", *modern, "ema.result=raw")
    exported = {}
    for name, kind, which in (("average", "ema", "ema"), ("raw", "master", "raw")):
        run = tmp_path / "runs" / name
        reader, _ = newest_valid(run / "checkpoints")
        assert reader is not None
        exported[name] = load_file(run / "export" / "model.safetensors")
        for key, value in exported[name].items():
            assert torch.equal(value, reader.full(kind, key)), key
        provenance = json.loads((run / "export" / "config.json").read_text())["provenance"]
        assert provenance["weights"] == which
        last = records(run)[-1]
        accuracy = last["eval/ema_top1_fraction" if which == "ema" else "eval/top1_fraction"]
        assert reader.manifest.accuracy_fraction == accuracy
        assert json.loads((run / "progress.json").read_text())["eval_top1_fraction"] == accuracy
        by_class = json.loads((run / "by_class.json").read_text())
        assert (by_class["weights"], by_class["top1_fraction"]) == (which, accuracy)
        assert (by_class["step"], by_class["of"]) == (last["step"], "eval")
        assert last["eval/ema_loss"] != last["eval/loss"]
    # Both trained and were measured alike: only what counts differs.
    assert records(tmp_path / "runs" / "average") == records(tmp_path / "runs" / "raw")
    assert not torch.equal(exported["average"]["head.weight"], exported["raw"]["head.weight"])


@pytest.mark.slow
def test_kernels_train_as_plain_torch_does(config):
    """Interpreted here; drop path, accumulation and two ranks included."""
    pytest.importorskip("triton", reason="triton has no wheel for this machine")
    once = ("schedule.epochs=1", "schedule.warmup_epochs=0")
    fused = ("engine.attention=fused", "engine.layer_norm=fused", "engine.cross_entropy=fused")
    records = []
    for name, settings in (("plain", ()), ("kernels", fused)):
        train(config, f"name={name}", *once, *settings, ranks=2)
        run = config.parent / "runs" / name
        events = (run / "events.jsonl").read_text()
        assert '"event": "started"' in events
        assert '"event": "fell_back"' not in events
        lines = (run / "metrics.jsonl").read_text().splitlines()
        records.append([json.loads(line) for line in lines])
    pairs = [pair for pair in zip(*records, strict=True) if "train/loss" in pair[0]]
    assert len(pairs) >= 3
    for plain, kernels in pairs:
        assert kernels["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-4)
        norms = [record["train/grad_norm"] for record in (plain, kernels)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    # Rounding differs at least, or the kernels were not used.
    assert any(plain["train/grad_norm"] != kernels["train/grad_norm"] for plain, kernels in pairs)
