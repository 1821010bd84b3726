"""A run directory to record into."""

import sys
from pathlib import Path

import pytest

from pretrain.config.schema import RunConfig
from pretrain.run_directory import RunDirectory

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))


def config_of(mode="disabled"):
    values = {
        "name": "tiny",
        "data": {"path": "/data"},
        "model": {
            "variant": "swin_t",
            "image_size": 32,
            "window_size": 4,
            "num_classes": 10,
        },
        "optim": {"lr": 0.001},
        "schedule": {"epochs": 10},
        "batch": {"global_size": 8, "micro_size_max": 8},
        "wandb": {"mode": mode, "project": "tests"},
    }
    return RunConfig.model_validate(values)


@pytest.fixture
def make_config():
    return config_of


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "tiny")
    directory.create(config_of(), "{}")
    return directory
