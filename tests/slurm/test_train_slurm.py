"""Real training on a real Slurm cluster of two nodes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """\
data: {{path: {shards}, workers_per_rank: 1}}
model: {{variant: swin_t, embed_dim: 16, depths: [1, 1, 1, 1], heads: [1, 2, 4, 8],
         image_size: 32, window_size: 4, num_classes: {classes}}}
optim: {{lr: 1.0e-3}}
schedule: {{epochs: 1}}
batch: {{global_size: 16, micro_size_max: 8}}
augment: {{mix_group: 8}}
eval: {{resize: null, batch_size_per_rank: 16}}
log: {{every_steps: 1}}
wandb: {{mode: disabled}}
engine: {{precision: fp32, threads_per_rank: 1}}
cluster: {{device: cpu, nodes: 2, ranks_per_node: 1, cpus_per_rank: 1, partition: main}}
"""


@pytest.fixture
def config(slurm: Path, tmp_path: Path, small_shards) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(shards=small_shards.path, classes=small_shards.classes))
    return path


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_the_launcher_and_a_bare_srun_train_the_same_on_two_nodes(config: Path):
    launched = subprocess.run(
        [sys.executable, str(ROOT / "launch/slurm.py"), "--config", str(config), "--follow"],
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "2 = 2 nodes x 1, cpu" in launched.stdout

    command = [sys.executable, "-m", "pretrain", "--config", str(config), "name=bare"]
    bare = subprocess.run(
        ["srun", "-p", "main", "-N2", "--ntasks-per-node=1", *command],
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert bare.returncode == 0, bare.stdout + bare.stderr
    runs = config.parent / "runs"
    assert len(losses(runs / "small")) == 6
    assert losses(runs / "bare") == losses(runs / "small")
