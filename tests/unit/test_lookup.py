"""Runs by name and by path, and what is said where there is none."""

from pathlib import Path

import pytest

from pretrain.errors import LaunchError
from pretrain.lookup import find_run, name_for_commands, runs_below
from pretrain.run_directory import RunDirectory


def make_run(runs_dir: Path, name: str = "first") -> RunDirectory:
    run = RunDirectory(runs_dir / name)
    run.path.mkdir(parents=True)
    run.config_path.touch()
    return run


def test_a_name_or_a_path_finds_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "runs")
    other = make_run(tmp_path / "elsewhere", "second")
    monkeypatch.chdir(tmp_path)
    for name in ("first", "first/", "runs/first", str(run.path), "elsewhere/../runs/first"):
        assert find_run(name, Path("runs")).path == run.path
    assert find_run(str(other.path), Path("runs")).path == other.path
    monkeypatch.chdir(run.path)
    assert find_run(".", Path("runs")).path == run.path


def test_the_runs_directory_comes_before_a_directory_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "runs")
    make_run(tmp_path, "first")
    monkeypatch.chdir(tmp_path)
    assert find_run("first", Path("runs")).path == run.path


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("frist", "did you mean 'first'?"),
        ("zzz", "there are first, second"),
        ("", "there are first, second"),
        ("notes", "there are first, second"),
        ("/nowhere/first", "there are none"),
    ],
)
def test_an_unknown_run_is_one_line_with_near_names(tmp_path: Path, name: str, hint: str) -> None:
    make_run(tmp_path)
    make_run(tmp_path, "second")
    (tmp_path / "notes").mkdir()
    with pytest.raises(LaunchError) as caught:
        find_run(name, tmp_path)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_run_is_told_apart(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "first.sweep" / "001").mkdir(parents=True)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "plan.json").touch()
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    runs, others = runs_below(tmp_path)
    assert [run.path.name for run in runs] == ["first", "half"]
    assert others == ["notes"]
    with pytest.raises(LaunchError, match="No such file"):
        runs_below(tmp_path / "none")


def test_a_command_names_a_run_as_it_must_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "runs")
    assert name_for_commands(run) == str(run.path)
    monkeypatch.chdir(tmp_path)
    assert name_for_commands(run) == "first"
