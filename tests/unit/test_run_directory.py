"""Whose a run directory is, and that reading it back gives what was written."""

import stat
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.schema import RunConfig
from pretrain.errors import ConfigError, LaunchError
from pretrain.run_directory import MAY_CHANGE, RunDirectory, differing_fields


def make_config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "name": "first",
        "data": {"path": "/data/22k"},
        "model": {"variant": "swin_t", "image_size": 224, "window_size": 7, "num_classes": 10},
        "optim": {"lr": 1e-3, "eps": 1e-8},
        "schedule": {"epochs": 3},
        "batch": {"global_size": 64, "micro_size_max": 8},
    }
    for dotted, value in changes.items():
        *sections, last = dotted.split("__")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return RunConfig.model_validate(values)


def test_config_survives_the_file(tmp_path: Path) -> None:
    config = make_config(cluster__setup=("module load cuda", 'export A="$HOME:x"'))
    run = RunDirectory(tmp_path / "runs" / "first")
    run.create(config, "{}")
    assert run.read_config() == config
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert not list(run.path.glob("*.tmp"))


def test_constructing_and_checking_write_nothing(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "first").check(make_config())
    assert list(tmp_path.iterdir()) == []


def test_another_config_is_refused_and_the_fields_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "first")
    run.create(make_config(), "{}")
    before = run.config_path.read_bytes()
    with pytest.raises(ConfigError, match=r"optim\.lr: the run has 0\.001, got 0\.002"):
        run.create(make_config(optim__lr=2e-3, seed=4), "{}")
    assert run.config_path.read_bytes() == before


def test_fields_that_do_not_change_learning_may_change(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "first")
    run.create(make_config(), "{}")
    config = make_config(
        cluster__nodes=4,
        engine__zero_stage=2,
        batch__micro_size_max=16,
        data__build="x",
        data__expected_train_samples=7,
    )
    run.create(config, '{"new": 1}')
    assert run.read_config() == config
    assert run.plan_path.read_text() == '{"new": 1}'


def test_limits_that_stopped_a_run_can_be_raised(tmp_path: Path) -> None:
    """Their messages say so."""
    run = RunDirectory(tmp_path / "first")
    run.create(make_config(), "{}")
    raised = make_config(data__max_bad_fraction=0.5, guard__max_rewinds=9)
    run.create(raised, "{}")
    assert run.read_config() == raised


def test_every_changeable_name_exists() -> None:
    dump = make_config().model_dump()
    for name in MAY_CHANGE:
        section: Any = dump
        for part in name.split("."):
            assert part in section, name
            section = section[part]


def test_every_other_field_counts() -> None:
    changed = make_config(data__path="/data/1k", engine__precision="fp32")
    names = [name for name, _, _ in differing_fields(make_config(), changed)]
    assert names == ["data.path", "engine.precision"]


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "thesis.tex").write_text("x")
    with pytest.raises(LaunchError, match=r"thesis\.tex but no config\.yaml"):
        RunDirectory(tmp_path / "first").create(make_config(), "{}")
    assert [entry.name for entry in (tmp_path / "first").iterdir()] == ["thesis.tex"]


def test_a_half_created_directory_is_taken_up(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "first")
    run.path.mkdir()
    run.plan_path.write_text("{}")
    run.create(make_config(), "{}")
    assert run.exists


def test_a_directory_others_may_write_to_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "first")
    run.create(make_config(), "{}")
    run.path.chmod(0o777)
    with pytest.raises(LaunchError, match="chmod go-w"):
        run.create(make_config(), "{}")


def test_damaged_config_is_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "first")
    with pytest.raises(LaunchError, match=r"no config\.yaml"):
        run.read_config()
    run.create(make_config(), "{}")
    run.config_path.write_text("a: [1,\n")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        run.read_config()
    run.config_path.write_text("name: first\nunknown: 1\n")
    with pytest.raises(ConfigError, match=r"unknown: unknown key"):
        run.read_config()


def test_progress_and_checkpoints(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "first")
    run.create(make_config(), "{}")
    assert run.read_progress() is None
    assert not run.is_done()
    assert run.newest_checkpoint_step() is None
    for name in ("step_00000900", "step_00001000", "step_00002000.tmp", "notes"):
        (run.checkpoints_dir / name).mkdir(parents=True)
    assert run.newest_checkpoint_step() == 1000
    run.progress_path.write_text('{"state": "training"')
    assert not run.is_done()
    run.progress_path.write_text('{"state": "done"}')
    assert run.is_done()
    assert run.attempt_dir(3).name == "003"
    assert run.rank_log(3, 0).name == "rank_000.log"
