"""Real training with keys in the environment and in ~/.netrc: none is written anywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_project import open_to_others, plant_canaries, where_canaries_are
from test_training import CONFIG

from pretrain.metrics.jsonl import read_lines
from pretrain.metrics.mirror.files import local_files, read_file
from pretrain.metrics.mirror.sending import values_of
from pretrain.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]


def check_mirror(run: RunDirectory) -> None:
    """Weights & Biases has the record of real training, and what the run is of."""
    (path,) = local_files(run.wandb_dir)
    mirrored = read_file(path)
    recorded = {
        (line["step"], name) for line in read_lines(run.metrics_path) for name in values_of(line)
    }
    rows = [row for row in mirrored.rows if "global_step" in row]
    sent = [(row["global_step"], name) for row in rows for name in values_of(row)]
    assert len(sent) == len(recorded)
    assert set(sent) == recorded
    assert mirrored.exit_code == 0
    assert mirrored.config["plan"]["total_steps"] == rows[-1]["global_step"]
    assert mirrored.config["class_order"]["length"] == 4
    assert len(mirrored.config["data_identity"]["fingerprint"]) == 64
    assert len(mirrored.config["code"]["code_sha256"]) == 64
    kinds = [artifact["name"].partition("-")[0] for artifact in mirrored.artifacts]
    assert set(kinds) == {"checkpoint", "export"}


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
    check_mirror(RunDirectory(run))
    assert where_canaries_are(canaries, tmp_path / "runs") == []
    assert open_to_others(tmp_path / "runs") == []
    assert not any(canary in done.stdout + done.stderr for canary in canaries)
