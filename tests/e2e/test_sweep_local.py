"""Sweeps on this machine, and what a launch leaves on the disk: nothing for others, no secrets."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from fake_project import FakeProject, open_to_others, plant_canaries, where_canaries_are

from launch.ledger import read_attempts
from launch.slurm import main
from launch.submit import read_job
from pretrain.errors import PretrainError
from pretrain.run_directory import RunDirectory

LOCAL = ("--cluster", "local")


def test_points_take_turns_and_leave_no_secrets_and_nothing_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = FakeProject(tmp_path, steps=12)
    project.show_key()
    canaries = plant_canaries(tmp_path / "home", monkeypatch)
    nested = project.runs / "made" / "too"
    before = os.umask(0)
    try:
        arguments = ("--config", "first", *LOCAL, "--sweep", "seed=0,1", f"runs_dir={nested}")
        code, output = project.launch(*arguments)
    finally:
        os.umask(before)
    assert code == 0, output
    first, second = (RunDirectory(nested / f"first--seed={seed}") for seed in (0, 1))
    assert read_job(first) == read_job(second)
    end_of_first = first.read_progress()
    assert end_of_first is not None
    (attempt,) = read_attempts(second)
    assert attempt.start_time > end_of_first["time"]
    assert (first.read_config().seed, second.read_config().seed) == (0, 1)

    key = hashlib.sha256(os.environ["WANDB_API_KEY"].encode()).hexdigest()
    assert f"key {key}" in second.rank_log(1, 1).read_text()
    assert where_canaries_are(canaries, project.runs) == []
    assert not any(canary in output for canary in canaries)
    assert open_to_others(project.runs) == []
    environment = json.loads(first.environment_path.read_text())
    assert environment["command"][2:4] == ["--config", "first"]
    assert environment["packages"]["submitit"]


@pytest.mark.slow
def test_a_failed_point_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    project = FakeProject(tmp_path)
    project.set_ranks(30, "refuse:1:5:99")
    code, output = project.launch("--config", "first", *LOCAL, "--sweep", "seed=0,1")
    assert code == 70
    for seed in (0, 1):
        assert f"first--seed={seed}: failed:" in output
        (attempt,) = read_attempts(RunDirectory(project.runs / f"first--seed={seed}"))
        assert attempt.outcome == "bad_input"


@pytest.fixture(scope="module")
def unused(tmp_path_factory: pytest.TempPathFactory) -> FakeProject:
    return FakeProject(tmp_path_factory.mktemp("unused"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "first", "--sweep", "sed=1,2"], "sed: unknown key"),
        (["--config", "first", "--sweep", "seed=1,1"], "are the same point"),
        (["--config", "first", "--sweep", "seed="], "expected section.field=value"),
        (["--config", "both", "--sweep", "seed=1,2"], "takes one config, got first, second"),
        (["--config", "first", "--max-concurrent", "2"], "give --sweep too"),
        (["--config", "first", "--sweep", "seed=1", "--max-concurrent", "0"], "expected 1 or more"),
        (["--config", "first", "--sweep", "seed=1", "--max-concurrent", "2"], "needs Slurm"),
        (["--config", "first", "--after", "other"], "--after: needs Slurm"),
        (["--config", "first", "data.path=s3://me:pw-canary@host/x"], "holds a password"),
        (["--config", "first", "wandb.project=canary-0123"], "holds the value of $HF_TOKEN"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    unused: FakeProject, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("pretrain.config.load.CONFIGS_DIR", unused.root / "configs")
    monkeypatch.setenv("HF_TOKEN", "canary-0123")
    with pytest.raises(PretrainError, match=re.escape(message)) as refusal:
        main([*arguments, *LOCAL])
    assert len(str(refusal.value).splitlines()) == 1
    assert "canary" not in str(refusal.value)
    assert not unused.runs.exists()


def test_dry_run_and_plan_cover_every_point_and_write_nothing(
    unused: FakeProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pretrain.config.load.CONFIGS_DIR", unused.root / "configs")
    points = ["first--optim.lr=0.001", "first--optim.lr=0.002"]
    for option in ("--plan", "--dry-run"):
        sweep = ["--config", "first", *LOCAL, "--sweep", "optim.lr=1e-3,2e-3", option]
        assert main(sweep) == 0
        output = capsys.readouterr().out
        assert re.findall(r"^plan of (\S+)$", output, re.MULTILINE) == points
        assert output.count("peak 0.001;") == output.count("peak 0.002;") == 1
    assert not unused.runs.exists()
