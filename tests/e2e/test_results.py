"""``results`` ends a chain: the weights before it evaluated and written in other layouts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.slurm import main as launch
from pretrain.config.load import load_run, results_of
from pretrain.errors import PretrainError
from pretrain.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
CONFIG = """\
data: {{path: {shards}, workers_per_rank: 1}}
model: {{variant: swin_t, embed_dim: 16, depths: [1, 1, 1, 1], heads: [1, 2, 4, 8],
         image_size: 32, window_size: 4, num_classes: {classes}}}
optim: {{lr: 1.0e-3}}
schedule: {{epochs: 1}}
batch: {{global_size: 16, micro_size_max: 8}}
augment: {{mix_group: 8}}
eval: {{resize: 36, batch_size_per_rank: 16}}
wandb: {{mode: disabled}}
engine: {{precision: fp32, threads_per_rank: 1}}
cluster: {{device: cpu, ranks_per_node: 2}}
results: {{convert: [official, safetensors]}}
"""
STOPPED = """\
import os, signal, sys
from pretrain import results
results.evaluate = lambda *_: os.kill(os.getpid(), signal.SIGUSR2)
from pretrain.__main__ import main
sys.exit(main(["--run", sys.argv[1]]))
"""


@pytest.fixture
def config(tmp_path, small_shards) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(shards=small_shards.path, classes=small_shards.classes))
    return path


@pytest.mark.slow
def test_a_chain_ends_with_its_results(config: Path):
    command = [sys.executable, str(ROOT / "launch/slurm.py"), "--cluster", "local"]
    done = subprocess.run(
        [*command, "--config", str(config), "--config", "results"],
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parent, run = (
        RunDirectory(config.parent / "runs" / name) for name in ("small", "small_results")
    )
    lines = [json.loads(line) for line in parent.metrics_path.read_text().splitlines()]
    recorded = [line["eval/top1_fraction"] for line in lines if "eval/top1_fraction" in line]
    (measured,) = json.loads((run.evaluation_dir / "small.json").read_text())["sets"]
    assert measured["top1_fraction"] == recorded[-1]
    assert measured["images"] == measured["images_in_split"]
    assert {path.name for path in run.converted_dir.iterdir()} == {"official.pth", "safetensors"}
    log = run.rank_log(1, 0).read_text()
    assert log.count("read back bit for bit") == 2
    assert "small_results: done at step 3" in done.stdout

    # A signal in the middle: it leaves, and says so; what was written stays.
    run.progress_path.unlink()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PRETRAIN_ATTEMPT": "2"}
    stopped = subprocess.run(
        [sys.executable, "-c", STOPPED, str(run.path)], env=environment, timeout=120, check=False
    )
    assert stopped.returncode == 0
    assert run.read_outcome(2) == {"outcome": "stopped", "step": 0}
    assert not run.is_done()


def test_what_results_cannot_make_is_refused_before_anything_is_written(
    config: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(config.parent)

    def refusal(*arguments: str) -> str:
        with pytest.raises(PretrainError) as caught:
            launch(["--cluster", "local", *arguments, "--no-follow"])
        assert not (config.parent / "runs").exists()
        return str(caught.value)

    chain = ("--config", str(config), "--config", "results")
    assert "of which run?" in refusal("--config", "results")
    assert "not-there" in refusal(*chain, "results.evaluate=[not-there]")
    assert "no held-out split and no probe" in refusal(*chain, "data.eval_split=null")
    assert "one window size for all stages" in refusal(*chain, "results.convert=[huggingface]")
    assert "results.convert.0" in refusal(*chain, "results.convert=[tensorflow]")


def test_results_are_a_run_of_one_node(config: Path):
    trained = load_run(str(config), ["cluster.nodes=4", "results.evaluate=[sets/a, https://b/c]"])
    run = results_of(trained)
    assert (run.name, run.init_from, run.task) == ("small_results", "small", "results")
    assert run.cluster.nodes == 1
    assert run.results.evaluate == (str(Path("sets/a").absolute()), "https://b/c")
