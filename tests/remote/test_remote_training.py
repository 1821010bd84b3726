"""The loader, the webdataset pipeline, the shuffle report and a whole run on the URL of a set."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from servers import Fault, manifest_of

from data_tools.shuffle_report import main as shuffle_report
from pretrain.config.schema import AugmentConfig, DataConfig, EvalConfig
from pretrain.data.as_webdataset import as_webdataset
from pretrain.data.loader import eval_batches, train_batches
from pretrain.data.manifest import read_manifest
from pretrain.errors import DataError
from pretrain.world import World

CONFIG = """\
data: {{path: '{url}', cache_dir: {cache}, workers_per_rank: 1, lanes: 2, window_shards: 1,
       remote_retry_seconds: 2}}
model: {{variant: swin_t, embed_dim: 16, depths: [1, 1, 1, 1], heads: [1, 2, 4, 8],
         image_size: 32, window_size: 4, num_classes: 3}}
optim: {{lr: 1.0e-3}}
schedule: {{epochs: 2}}
batch: {{global_size: 12, micro_size_max: 12}}
augment: {{mix_group: 4}}
log: {{every_steps: 1}}
wandb: {{mode: disabled}}
cluster: {{device: cpu}}
"""


def local(data: DataConfig, published: Path) -> DataConfig:
    return data.model_copy(update={"path": str(published / "set")})


def small_lanes(data: DataConfig, workers: int) -> DataConfig:
    return data.model_copy(update={"workers_per_rank": workers, "lanes": 2, "window_shards": 1})


def train(data: DataConfig, steps: int = 5):
    return train_batches(
        manifest_of(data),
        data,
        AugmentConfig(),
        seed=0,
        image_size=32,
        global_batch=12,
        micro_batch=6,
        accumulation=2,
        world=World(),
        first_step=0,
        last_step=steps,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_yields_what_it_yields_from_a_directory(data, published, proxy, workers):
    data = small_lanes(data, workers)
    proxy.faults["small-train-000002.tar"] = [Fault("reset", 5000), Fault("status", 503)]
    with train(data) as found, train(local(data, published)) as expected:
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.sample_ids, theirs.sample_ids)
            assert not ours.bad
    evaluation = EvalConfig(batch_size_per_rank=4)
    ids = []
    manifest = manifest_of(data)
    with eval_batches(
        manifest, "validation", data, evaluation, image_size=32, world=World()
    ) as batches:
        for batch in batches:
            ids += batch.sample_ids[batch.valid].tolist()
    assert ids == list(range(manifest.split("validation").samples))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_cannot_be_had_stops_the_loader_with_one_line(data, proxy, workers):
    data = small_lanes(data, workers)
    proxy.always["small-train-000001.tar"] = Fault("wrong")
    with (
        train(data) as batches,
        pytest.raises(DataError, match=r"small-train-000001.tar: wrong bytes") as caught,
    ):
        list(batches)
    assert "\n" not in str(caught.value)


def test_a_dead_prefetcher_is_not_missed(data):
    with train(small_lanes(data, 2)) as batches:
        os.kill(batches._remote._prefetcher.process.pid, signal.SIGKILL)
        assert len(list(batches)) == 10


def test_a_webdataset_pipeline_reads_a_url(data, published):
    def keys(config: DataConfig) -> list[str]:
        pipeline = as_webdataset(manifest_of(config), "train", config, seed=0, world=World())
        return [sample["__key__"] for sample in pipeline]

    assert keys(data) == keys(local(data, published))


def test_the_shuffle_report_fetches_indices_only(data, proxy, published, capsys):
    arguments = ["--global-batch", "6", "--cache-dir", data.cache_dir]
    code = shuffle_report([data.path, *arguments])
    of_url = capsys.readouterr().out
    assert shuffle_report([str(published / "set"), *arguments]) == code
    of_directory = capsys.readouterr().out
    assert of_url.replace(data.path, str(published / "set")) == of_directory
    assert not any(name.endswith(".tar") for name in proxy.requests)


@pytest.mark.slow
def test_a_run_learns_the_same_from_a_url(data, published, proxy, tmp_path):
    losses = []
    for name, path in (("local", str(published / "set")), ("remote", data.path)):
        config = tmp_path / f"{name}.yaml"
        config.write_text(CONFIG.format(url=path, cache=tmp_path / "cache"))
        command = [sys.executable, "-m", "pretrain", "--config", str(config)]
        answer = subprocess.run(
            [*command, f"runs_dir={tmp_path}/runs"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        losses.append([r["train/loss"] for r in map(json.loads, lines) if "train/loss" in r])
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
    fetched = {name for name in proxy.requests if name.endswith(".tar")}
    manifest = read_manifest(published / "set")
    assert fetched == {shard.file for split in manifest.splits.values() for shard in split.shards}
