"""What is refused before submission, and what a job record says."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from submitit import SlurmExecutor

from launch.build_data import build_data
from launch.script import check_slurm, render, spec_of
from pretrain.config.schema import RunConfig
from pretrain.errors import DataError, LaunchError
from pretrain.run_directory import RunDirectory

TAIL = ["", "# command", "export SUBMITIT_EXECUTOR=slurm"]


def make_config(runs_dir: str = "/runs", build: str | None = None, **cluster: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "first",
            "runs_dir": runs_dir,
            "data": {"path": "/data", "build": build},
            "model": {"variant": "swin_t", "image_size": 32, "window_size": 4, "num_classes": 2},
            "optim": {"lr": 1e-3},
            "schedule": {"epochs": 1},
            "batch": {"global_size": 8, "micro_size_max": 4},
            "cluster": {"executor": "slurm", **cluster},
        }
    )


def sbatch_script(config: RunConfig, ranks_per_node: int, after: Sequence[str] = ()) -> str:
    run = RunDirectory(Path(config.runs_dir) / config.name)
    return render(spec_of(run, config, ranks_per_node, after))


@pytest.fixture(autouse=True)
def with_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 2))


@pytest.mark.parametrize("path", ["/a\ntouch x", "/a'b", '/a"b', "/a%j", "/a\\b"])
def test_paths_an_sbatch_script_cannot_hold_are_refused(path: str) -> None:
    with pytest.raises(LaunchError, match="runs_dir"):
        check_slurm(make_config(path))


def test_a_time_limit_without_time_is_refused() -> None:
    with pytest.raises(LaunchError, match="at least 10"):
        check_slurm(make_config(time_limit_minutes=3))
    check_slurm(make_config(time_limit_minutes=10))
    short = {"signal_lead_seconds": 30, "start_budget_seconds": 20}
    check_slurm(make_config(time_limit_minutes=2, **short))
    with pytest.raises(LaunchError, match="at least 2 "):
        check_slurm(make_config(time_limit_minutes=1, **short))
    check_slurm(make_config())


def test_the_script_says_what_the_config_says() -> None:
    config = make_config(
        nodes=4,
        gpus_per_node=8,
        cpus_per_rank=12,
        memory_gib_per_node=480,
        time_limit_minutes=1440,
        partition="long",
        account="vision",
        exclude="n[1-3,7]",
        setup=("module load cuda",),
    )
    lines = sbatch_script(config, 8, after=["41", "42"]).splitlines()
    directives = {
        words[0]: words[-1]
        for line in lines
        if line.startswith("#SBATCH --")
        for words in [shlex.split(line.removeprefix("#SBATCH --"))[0].partition("=")]
    }
    assert directives == {
        "job-name": "first",
        "nodes": "4",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "cpus-per-task": "12",
        "mem": "480G",
        "time": "1440",
        "partition": "long",
        "account": "vision",
        "exclude": "n[1-3,7]",
        "dependency": "afterok:41:42",
        "kill-on-invalid-dep": "yes",
        "requeue": "",
        "signal": "USR2@180",
        "chdir": "/runs/first/code",
        "open-mode": "append",
        "output": "/runs/first/submitit/%j_0_log.out",
    }
    assert "module load cuda" in lines
    assert lines[-1].startswith("exec ")


def test_what_is_not_said_is_left_to_the_site() -> None:
    script = sbatch_script(make_config(), 1)
    for option in ("--time", "--mem", "--partition", "--gpus", "--cpus", "--wckey", "--depend"):
        assert option not in script


text = st.text("ab1=,[]@/:+-._ \n\r\t'\"%$`;#\\|&é\u2028", max_size=5)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["partition", "account", "qos", "constraint"]), text), text)
def test_no_accepted_config_adds_a_line(cluster: dict[str, str], folder: str) -> None:
    """Whatever strings the schema and the checks let pass, the script keeps its shape."""
    try:
        config = make_config(f"/runs/{folder}", **cluster)
        check_slurm(config)
    except (ValueError, LaunchError):
        return
    lines = sbatch_script(config, 1).split("\n")
    directives = [line for line in lines if line.startswith("#SBATCH --")]
    assert lines[: len(directives) + 3] == ["#!/bin/bash", "", "# Parameters", *directives]
    assert lines[len(directives) + 3 : -2] == TAIL
    assert lines[-2].startswith("exec ")
    assert lines[-1] == ""
    for name, value in cluster.items():
        assert f"#SBATCH --{name}={shlex.quote(value)}" in directives


@pytest.mark.parametrize(
    "build",
    [None, "rm -rf /", "python -m http.server", "python -c 1", "python -m data_tools", "x", "'"],
)
def test_only_data_tools_are_run_to_build(build: str | None) -> None:
    with pytest.raises(DataError, match=r"data\.build"):
        build_data(make_config(build=build))


def test_a_failing_build_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="exited with code"):
        build_data(make_config(build="python -m data_tools.there_is_none /data"))


def test_a_build_of_something_else_is_not_run() -> None:
    with pytest.raises(DataError, match="does not write there"):
        build_data(make_config(build="python -m data_tools.synthetic /other"))


def test_no_module_of_launch_shadows_another() -> None:
    """Run as a script, launch/ would be first on the path."""
    import sys

    import launch

    names = {path.stem for path in Path(launch.__path__[0]).glob("*.py")} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)
