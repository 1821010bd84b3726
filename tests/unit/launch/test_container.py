"""What is added to the srun of the ranks: the site's own arguments, and a container."""

import sys
from pathlib import Path

from launch.container import python_of_ranks, step_arguments
from launch.supervise.ranks import Layout, rank_command
from launch.supervise.srun import _srun_command
from pretrain.config.load import to_yaml
from pretrain.config.schema import RunConfig
from pretrain.run_directory import RunDirectory

IMAGE = "nvcr.io#nvidia/pytorch:25.05-py3"


def make_config(data: str = "/data/in22k", init_from: str | None = None, **cluster: object):
    return RunConfig.model_validate(
        {
            "name": "first",
            "runs_dir": "/runs",
            "init_from": init_from,
            "data": {"path": data, "cache_dir": "/local/cache"},
            "model": {"variant": "swin_t", "image_size": 32, "window_size": 4, "num_classes": 2},
            "optim": {"lr": 1e-3},
            "schedule": {"epochs": 1},
            "batch": {"global_size": 8, "micro_size_max": 4},
            "eval": {"probe": {"path": "/data/in1k"}},
            "cluster": {"executor": "slurm", **cluster},
        }
    )


RUN = RunDirectory("/runs/first")


def test_nothing_is_added_unasked() -> None:
    assert step_arguments(make_config(), RUN) == []
    assert python_of_ranks(make_config()) == sys.executable


def test_the_ranks_of_a_container_see_what_the_config_names() -> None:
    config = make_config(
        init_from="parent",
        container_image=IMAGE,
        container_mounts=("/data:/data:ro", "/x:/y"),
        srun_arguments=("--mpi=pmix",),
    )
    assert step_arguments(config, RUN) == [
        "--mpi=pmix",
        f"--container-image={IMAGE}",
        "--container-mounts=/data:/data:ro,/x:/y,/local/cache:/local/cache,"
        "/runs/first:/runs/first,/runs/parent:/runs/parent",
        "--container-workdir=/runs/first/code",
    ]
    assert rank_command(RUN, python_of_ranks(config))[0] == "python3"
    remote = make_config(data="s3://bucket/in22k", init_from="/runs/first/x", container_image=IMAGE)
    mounts = step_arguments(remote, RUN)[1]
    assert mounts == (
        "--container-mounts=/data/in1k:/data/in1k,/local/cache:/local/cache,/runs/first:/runs/first"
    )


def test_srun_gets_them_before_the_command_of_the_ranks(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    config = make_config(container_image=IMAGE, srun_arguments=("--mpi=pmix",))
    run.config_path.write_text(to_yaml(config))
    command = _srun_command(Layout(nodes=2, ranks_per_node=8), run, "log")
    assert command[0] == "srun"
    assert command[-4:-1] == ["sh", "-c", command[-2]]
    assert set(step_arguments(config, run)) < set(command[:-4])
