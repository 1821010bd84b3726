"""Whatever wandb lost, its history is the record again, and what is whole is left alone."""

import json

import pytest

from pretrain.errors import LaunchError
from pretrain.metrics.jsonl import read_lines
from pretrain.metrics.mirror import repair as module
from pretrain.metrics.mirror.files import local_files, read_file
from pretrain.metrics.mirror.repair import compare, repair
from pretrain.metrics.mirror.sending import values_of
from pretrain.metrics.recorder import Recorder
from pretrain.run_lock import run_lock


@pytest.fixture
def recorded(run, make_config):
    """A run of two attempts with an alert and a checkpoint."""
    run.create(make_config("offline"), "{}")
    directory = run.checkpoints_dir / "step_00000010"
    directory.mkdir(parents=True)
    facts = {"step": 10, "samples_consumed": 80, "accuracy_fraction": 0.5}
    (directory / "manifest.json").write_text(json.dumps({"manifest": facts}))
    for attempt, steps in ((1, (10, 20)), (2, (30, 40))):
        with Recorder(
            run,
            make_config("offline"),
            rank=0,
            attempt=attempt,
            resume_step=steps[0] - 10,
            total_steps=100,
            steps_per_epoch=50,
            facts={"plan": {"total_steps": 100}},
        ) as recorder:
            for step in steps:
                recorder.write(step, {"train/loss": 1 / step, "train/skipped_steps": 1})
                recorder.write(step, {"eval/loss": float("nan")})
            recorder.event("checkpoint_saved", step=10, directory=str(directory))
    return run


def numbers(rows):
    return {
        (row.get("step", row.get("global_step")), name): value
        for row in rows
        for name, value in values_of(row).items()
    }


def test_after_any_loss_the_history_is_the_record(recorded):
    files = local_files(recorded.wandb_dir)
    assert repair(recorded)[-1] == "nothing is missing; nothing was done"
    assert local_files(recorded.wandb_dir) == files

    first, second = files
    content = first.read_bytes()
    place = content.index(b"train/loss")
    losses = {
        "killed before the flush": lambda: second.write_bytes(b""),
        "a file deleted": lambda: first.unlink(),
        "a file cut off": lambda: first.write_bytes(content[:place]),
        "a flipped bit": lambda: first.write_bytes(
            content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        ),
    }
    whole = {path: path.read_bytes() for path in files}
    lines, events = read_lines(recorded.metrics_path), read_lines(recorded.events_path)
    for what, lose in losses.items():
        lose()
        found = compare(
            lines, events, [read_file(path) for path in local_files(recorded.wandb_dir)]
        )
        assert not found.is_whole, what
        for path, kept in whole.items():
            path.write_bytes(kept)
    losses["a flipped bit"]()
    second.unlink()

    said = repair(recorded)
    (path,) = local_files(recorded.wandb_dir)
    rebuilt = read_file(path)
    assert numbers(rebuilt.rows) == numbers(lines)
    assert [row["global_step"] for row in rebuilt.rows] == [10, 20, 30, 40]
    assert rebuilt.path.name == first.name, "the same id"
    assert rebuilt.config["plan"] == {"total_steps": 100}
    assert len(rebuilt.alerts) == len(rebuilt.artifacts) == 1
    aside = recorded.wandb_dir / "superseded"
    assert (aside / first.parent.name).exists()
    assert f"wandb sync {path.parent}" in said[-2]
    assert not (recorded.wandb_dir / "repair.tmp").exists()
    assert repair(recorded)[-1] == "nothing is missing; nothing was done"


@pytest.mark.slow
def test_a_run_that_goes_on_after_a_repair_repeats_nothing(recorded, make_config):
    for path in local_files(recorded.wandb_dir):
        path.unlink()
    repair(recorded)
    with Recorder(
        recorded,
        make_config("offline"),
        rank=0,
        attempt=3,
        resume_step=40,
        total_steps=100,
        steps_per_epoch=50,
    ) as recorder:
        recorder.write(50, {"train/loss": 1.0})
    rows = [row for path in local_files(recorded.wandb_dir) for row in read_file(path).rows]
    assert [row["global_step"] for row in rows] == [10, 20, 30, 40, 50]


def test_a_rebuild_that_fails_leaves_everything_where_it_is(run, monkeypatch):
    run.metrics_path.write_text('{"step": 10, "train/loss": 1.0}\n')
    torn = run.wandb_dir / "offline-run-20260101_000000-abcd1234" / "run-abcd1234.wandb"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b":W&B")
    monkeypatch.setattr(module, "send_the_rest", lambda *_, **__: "wandb is gone")
    with pytest.raises(LaunchError, match="wandb is gone"):
        repair(run)
    assert local_files(run.wandb_dir) == [torn]


def test_an_active_run_and_one_without_a_record_are_refused(run):
    with pytest.raises(LaunchError, match="expected the record"):
        repair(run)
    with run_lock(run, "1"), pytest.raises(LaunchError, match="active"):
        repair(run)
