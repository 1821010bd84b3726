"""The command for runs as it is typed: fast, and strict about what it is given."""

import subprocess
import sys
from pathlib import Path

import pytest
from fabricated import make_run

from launch import runs
from launch.runs import main
from pretrain.errors import LaunchError

ROOT = Path(__file__).parents[3]


def test_it_loads_nothing_heavy(tmp_path: Path) -> None:
    make_run(tmp_path)
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "launch/runs.py", "list", "--runs-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "first  lost" in answer.stdout
    loaded = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "launch.look_after.resuming" in loaded
    assert not loaded & {"torch", "submitit", "rich", "wandb", "numpy", "deepspeed"}


@pytest.mark.parametrize(
    ("typed", "overrides", "follow_on"),
    [
        (["first"], [], None),
        (["first", "cluster.nodes=1", "--no-follow"], ["cluster.nodes=1"], False),
        (["first", "--follow", "cluster.nodes=1", "a.b=c"], ["cluster.nodes=1", "a.b=c"], True),
    ],
)
def test_resume_takes_fields_before_and_after_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: list[str],
    overrides: list[str],
    follow_on: bool | None,
) -> None:
    make_run(tmp_path)
    given: dict = {}
    monkeypatch.setattr(
        runs, "resume_run", lambda run, fields, **rest: given.update(rest, fields=fields) or 75
    )
    words = ["resume", "--runs-dir", str(tmp_path), *typed]
    assert main(words) == 75
    command = ["python", "launch/runs.py", *words]
    assert given == {"fields": overrides, "follow_on": follow_on, "command": command}


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["lst"],
        ["status"],
        ["status", "first", "second"],
        ["resume", "first", "--fast"],
        ["logs", "first", "--lines", "0"],
        ["clean", "first", "--checkpoints", "0"],
        ["clean", "first", "--checkpoints", "2", "--all"],
    ],
)
def test_what_is_not_understood_is_bad_input(typed: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(typed)
    assert caught.value.code == 2


def test_an_unknown_run_is_refused_by_every_verb(tmp_path: Path) -> None:
    make_run(tmp_path)
    for verb in ("status", "follow", "logs", "stop", "resume", "clean", "why"):
        with pytest.raises(LaunchError, match="did you mean 'first'"):
            main([verb, "frist", "--runs-dir", str(tmp_path)])
