"""A profile of a real run: what is left, and that training does not notice."""

import json

import pytest
from test_training import CONFIG, records, train

from pretrain.run_directory import RunDirectory


@pytest.fixture
def config(tmp_path, small_shards):
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(shards=small_shards.path, classes=small_shards.classes))
    return path


def test_a_run_is_profiled_and_stops_with_its_state_saved(config):
    output = train(config, "profile.steps=2", "profile.first_step=2", "profile.stop=true")
    run = RunDirectory(config.parent / "runs" / "small")
    stem = "attempt_001_steps_3-4_rank_000"
    assert {path.name for path in run.profile_dir.iterdir()} == {
        f"trace_{stem}.json.gz",
        f"summary_{stem}.txt",
    }
    events = [json.loads(line) for line in run.events_path.read_text().splitlines()]
    (told,) = (event for event in events if event["event"] == "profiled")
    assert told["summary"] == str(run.profile_dir / f"summary_{stem}.txt")
    assert "open in https://ui.perfetto.dev" in output
    page = (run.profile_dir / f"summary_{stem}.txt").read_text()
    for part in ("waiting for data", "augmentation", "optimizer, ZeRO", "patch merging 3"):
        assert part in page
    assert run.newest_checkpoint_step() == 4
    assert json.loads(run.outcome_path(1).read_text()) == {"outcome": "profiled", "step": 4}


@pytest.mark.slow
def test_a_profiled_run_learns_what_another_does(config):
    """Also where it stops in between and goes on without a profile."""
    train(config, "--name=plain")
    train(config, "--name=profiled", "profile.steps=3", "profile.first_step=1", "profile.stop=true")
    train(config, "--name=profiled")
    runs = config.parent / "runs"
    assert records(runs / "profiled") == records(runs / "plain")


MASKED = (
    "masking={patch_size: 32}", "model.image_size=64", "data.eval_split=null",
    "augment.mix_probability=0", "augment.label_smoothing=0",
)  # fmt: skip


@pytest.mark.slow
def test_masked_training_is_profiled(config):
    train(
        config, *MASKED, "profile.steps=1", "profile.first_step=2", "profile.stop=true",
        "profile.memory=false",
    )  # fmt: skip
    page = next((config.parent / "runs/small/profile").glob("*.txt")).read_text()
    for part in ("decoder", "stage 4", "Memory: not recorded"):
        assert part in page
