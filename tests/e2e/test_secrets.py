"""Real training with keys in the environment and in ~/.netrc: none is written anywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_project import open_to_others, plant_canaries, where_canaries_are
from test_training import CONFIG

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_real_training_with_wandb_offline_writes_no_key(
    tmp_path: Path, small_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries = plant_canaries(tmp_path / "home", monkeypatch)
    config = tmp_path / "small.yaml"
    text = CONFIG.format(shards=small_shards.path, classes=small_shards.classes)
    config.write_text(text.replace("wandb: {mode: disabled}", "wandb: {mode: offline}"))
    overrides = ["schedule.epochs=1", "schedule.warmup_epochs=0", "cluster.ranks_per_node=2"]
    command = [sys.executable, str(ROOT / "launch/slurm.py"), "--cluster", "local", "--config"]
    before = os.umask(0)
    try:
        done = subprocess.run(
            [*command, str(config), *overrides],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "small"
    assert any((run / "wandb").glob("offline-run-*"))
    assert where_canaries_are(canaries, tmp_path / "runs") == []
    assert open_to_others(tmp_path / "runs") == []
    assert not any(canary in done.stdout + done.stderr for canary in canaries)
