"""Saved state of whole runs: disks that fail, worlds and stages that change in mid-epoch."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_training import CONFIG, final_state, records, start, train

from pretrain.checkpoint.resume import newest_valid
from pretrain.errors import EXIT_STORAGE

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path, small_shards) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(shards=small_shards.path, classes=small_shards.classes))
    return path


def events(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def forget_after(run: Path, step: int) -> None:
    """Leave a run as if it had been killed soon after a save."""
    for path in (run / "checkpoints").glob("step_*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)


@pytest.fixture
def small_disk(config, tmp_path) -> Iterator[Path]:
    """A run that stands at step 4, on a disk with room for one checkpoint and a half."""
    train(config, "checkpoint.keep_last=9")
    run = tmp_path / "runs" / "small"
    forget_after(run, 4)
    saved = run / "checkpoints" / "step_00000004"
    size = sum(path.stat().st_size for path in saved.iterdir())
    moved = tmp_path / "moved"
    (run / "checkpoints").rename(moved)
    (run / "checkpoints").mkdir()
    options = f"size={size * 3 // 2},mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(run / "checkpoints")]
    if os.getuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    shutil.copytree(moved / saved.name, saved)
    yield run
    subprocess.run(["umount", str(run / "checkpoints")], check=True)


def test_a_full_disk_stops_nothing_but_the_last_save_is_worth_a_retry(config, small_disk):
    process = start(config, "checkpoint.keep_last=9")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == EXIT_STORAGE, output
    (failed,) = events(small_disk, "checkpoint_failed")
    assert failed["step"] == 8
    for text in (failed["reason"], output.splitlines()[-1]):
        assert "a checkpoint needs" in text
        assert "MiB are free; make room there" in text
        assert "1 older checkpoint is untouched" in text
    assert output.splitlines()[-1].startswith("error: checkpoint, rank 0: ")
    assert "Traceback" not in output
    assert records(small_disk)[-1]["step"] == 12  # trained to the end all the same
    assert newest_valid(small_disk / "checkpoints")[0].step == 4

    subprocess.run(
        ["mount", "-o", "remount,size=1g", str(small_disk / "checkpoints")], check=True
    )  # fmt: skip
    train(config, "checkpoint.keep_last=9")  # what was asked for was done: now it ends well
    assert newest_valid(small_disk / "checkpoints")[0].step == 12


def test_ranks_and_stages_change_in_mid_epoch_and_the_curve_goes_on(config, tmp_path):
    every = ("log.every_steps=1", "checkpoint.every_steps=3", "checkpoint.keep_last=9")
    train(config, "name=twin", *every, ranks=2)
    run = tmp_path / "runs" / "chain"
    for ranks, stage, step in ((2, 1, 3), (1, 2, 6), (4, 3, 9), (2, 2, 12)):
        train(config, "name=chain", f"engine.zero_stage={stage}", *every, ranks=ranks)
        forget_after(run, step)
        reader, _ = newest_valid(run / "checkpoints")
        assert reader is not None
        assert (reader.step, reader.manifest.world_size) == (step, ranks)
    one, other = records(tmp_path / "runs" / "twin"), records(run)
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for mine, twins in zip(other, one, strict=True):
        assert mine.get("data/samples_consumed") == twins.get("data/samples_consumed")
        if "train/loss" in mine:
            assert mine["train/loss"] == pytest.approx(twins["train/loss"], rel=1e-4)
    twin, chain = final_state(tmp_path / "runs" / "twin"), final_state(run)
    for key, value in twin.items():
        if key.startswith("master|"):
            assert float((value - chain[key]).abs().max()) < 1e-3, key


def test_the_best_checkpoint_is_kept_and_says_how_good_it_is(config, tmp_path):
    train(config, "checkpoint.keep_last=1", "checkpoint.keep_best=1", "checkpoint.every_steps=5")
    run = tmp_path / "runs" / "small"
    accuracy = {
        line["step"]: line["eval/top1_fraction"]
        for line in records(run)
        if "eval/top1_fraction" in line
    }
    assert sorted(accuracy) == [6, 12]
    best = max(accuracy, key=lambda step: (accuracy[step], step))
    kept = sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))
    assert kept == sorted({best, 12})
    reader, _ = newest_valid(run / "checkpoints")
    assert reader is not None
    assert reader.manifest.accuracy_fraction == accuracy[12]


def test_a_disk_full_of_something_else_ends_nothing(config, tmp_path):
    """Not a byte of the run directory can be written for a while: numbers wait for room."""
    disk = tmp_path / "runs"
    disk.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    try:
        process = start(config, "schedule.epochs=8")
        assert process.stdout is not None
        filler = disk / "filler"
        for line in process.stdout:
            if "step 6/" in line and not filler.exists():
                subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False)
            if "the record cannot be written" in line:
                filler.unlink()
        assert process.wait(timeout=300) == 0
        run = disk / "small"
        steps = [line["step"] for line in records(run)]
        assert steps == sorted(steps)
        assert set(range(2, 49, 2)) <= set(steps)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
