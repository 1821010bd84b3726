"""Training with Weights & Biases at its best and at its worst."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import CONFIG, records, train

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from wandb_servers import environment, faulty, processes_of, wait_until

from pretrain.metrics.mirror.dashboard import SECTIONS, shown_metrics
from pretrain.metrics.mirror.files import local_files, read_file

NOT_ON_THIS_MACHINE = {
    "train/loss_scale": "of fp16 only",
    "perf/flop_utilisation_fraction": "of known devices only",
}


@pytest.mark.slow
def test_a_hanging_server_changes_nothing_and_every_panel_has_its_metrics(
    tmp_path, small_shards, monkeypatch
):
    config = tmp_path / "small.yaml"
    config.write_text(CONFIG.format(shards=small_shards.path, classes=small_shards.classes))
    probe = os.path.relpath(small_shards.path, tmp_path)
    settings = ["ema.decay=0.9", f"eval.probe.path={probe}"]
    train(config, "name=twin", "wandb.mode=offline", *settings)
    monkeypatch.setenv("HOME", str(tmp_path))
    with faulty("hangs") as server:
        for name, text in environment(server.port).items():
            monkeypatch.setenv(name, text)
        output = train(config, "name=hanging", "wandb.mode=online", *settings)
        assert server.requests
        assert not server.released.is_set()
        wait_until(lambda: not processes_of(server.port))
    assert output.count("wandb failed: reason") == 1

    twin, hanging = tmp_path / "runs" / "twin", tmp_path / "runs" / "hanging"
    assert json.loads((hanging / "progress.json").read_text())["state"] == "done"
    assert records(hanging) == records(twin)
    weights = [load_file(run / "export" / "model.safetensors") for run in (twin, hanging)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name

    (path,) = local_files(twin / "wandb")
    logged = {name for row in read_file(path).rows for name in row}
    assert set(shown_metrics()) - logged <= NOT_ON_THIS_MACHINE.keys()
    pictures = {
        key
        for section in SECTIONS
        for panel in section.panels
        if panel.kind == "images"
        for key in panel.keys
    }
    assert pictures <= {name.partition("/")[0] for name in logged}
