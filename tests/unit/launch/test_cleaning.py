"""What goes, what stays, and who is asked."""

import io
import sys
from pathlib import Path

import pytest
from fabricated import add_attempt, add_checkpoint, contents, make_run

from launch.look_after.cleaning import clean_run, find_items
from pretrain.checkpoint.ownership import take_over
from pretrain.errors import LaunchError
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import run_lock


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with something of everything."""
    run = make_run(tmp_path)
    add_attempt(run, 1, outcome="crashed", next_action="restart")
    add_attempt(run, 2)
    for step in (10, 20, 30):
        add_checkpoint(run, step)
    area = run.checkpoints_dir / take_over(run.checkpoints_dir, 2)
    (area / "step_00000040").mkdir()
    (area / "step_00000040" / "rank_00000.safetensors").touch()
    run.submitit_dir.mkdir()
    for name in ("7_0_log.out", "7_submitted.pkl", "6_0_log.out", "submit.log"):
        (run.submitit_dir / name).write_text("x")
    (run.path / "code.old.tmp" / "pretrain").mkdir(parents=True)
    (run.path / "progress.json.123.tmp").touch()
    for path in (run.code_path, run.export_dir, run.wandb_dir):
        path.mkdir()
        (path / "kept").touch()
    return run


def clean(run: RunDirectory, **changes: object) -> int:
    options: dict = {"keep_checkpoints": None, "everything": False, "agreed": True}
    return clean_run(run, **(options | changes))


def test_only_what_nothing_needs_goes(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run.path)
    assert clean(run) == 0
    gone = before.keys() - contents(run.path).keys()
    assert {name.split("/")[0] for name in gone} == {
        *("attempts", "checkpoints", "submitit", "progress.json.123.tmp"),
    }
    assert {name for name in gone if name.startswith("submitit")} == {
        *("submitit/7_submitted.pkl", "submitit/6_0_log.out", "submitit/submit.log"),
    }
    assert {name.rpartition("/")[0] for name in gone if name.startswith("attempts")} == {
        "attempts/001"
    }
    assert not (run.path / "code.old.tmp").exists()
    assert sorted(path.name for path in run.checkpoints_dir.glob("step_*")) == [
        *("step_00000010", "step_00000020", "step_00000030"),
    ]
    said = capsys.readouterr().out
    assert "logs of attempt 1" in said
    assert "KiB" in said
    clean(run)
    assert "first: nothing to clean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damaged", "keep", "left"),
    [
        ([], 1, [30]),
        ([], 2, [20, 30]),
        ([], 9, [10, 20, 30]),
        ([30], 1, [20, 30]),  # the damaged one is not counted, nor taken: it is newer
        ([20], 1, [30]),
        ([20, 30], 1, [10, 20, 30]),  # the only sound one
        ([10, 20, 30], 1, [10, 20, 30]),
    ],
)
def test_the_newest_sound_checkpoints_stay(
    tmp_path: Path,
    damaged: list[int],
    keep: int,
    left: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path)
    for step in (10, 20, 30):
        add_checkpoint(run, step, sound=step not in damaged)
    clean(run, keep_checkpoints=keep)
    names = sorted(path.name for path in run.checkpoints_dir.iterdir())
    assert names == [f"step_{step:08d}" for step in left]
    notes = capsys.readouterr().out.count("does not match the digest")
    assert notes == len([step for step in damaged if step in left])


def test_everything_goes_only_when_that_is_said(run: RunDirectory) -> None:
    clean(run, everything=True)
    assert not run.path.exists()
    assert not list(run.path.parent.iterdir())


def test_nothing_goes_unasked(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run.path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(LaunchError, match="--yes"):
        clean(run, agreed=False)
    assert "logs of attempt 1" in capsys.readouterr().out, "what would go is said all the same"

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    for answer in ("", "n", "yess"):
        monkeypatch.setattr("builtins.input", lambda _question, answer=answer: answer)
        assert clean(run, agreed=False, everything=True) == 1
    assert contents(run.path) == before
    monkeypatch.setattr("builtins.input", lambda _question: "Y")
    assert clean(run, agreed=False) == 0
    assert not run.attempt_dir(1).exists()


@pytest.mark.parametrize("everything", [True, False])
def test_an_active_run_is_refused(run: RunDirectory, everything: bool) -> None:
    before = contents(run.path)
    with run_lock(run, "7"), pytest.raises(LaunchError, match=r"is active .*; stop it first"):
        clean(run, everything=everything)
    assert contents(run.path) == before


def test_a_run_that_an_active_one_starts_from_is_not_removed(run: RunDirectory) -> None:
    child = make_run(run.path.parent, "second")
    text = child.config_path.read_text()
    child.config_path.write_text(text.replace("init_from: null", "init_from: first"))
    with run_lock(child, "8"), pytest.raises(LaunchError, match="second, which is active"):
        clean(run, everything=True)
    clean(run, everything=True)


def test_what_is_not_surely_a_run_is_never_removed_whole(tmp_path: Path) -> None:
    stranger = RunDirectory(tmp_path / "project")
    stranger.path.mkdir()
    stranger.config_path.write_text("mine: 1\n")
    (stranger.path / "thesis.tex").touch()
    with pytest.raises(LaunchError, match="not surely a run"):
        clean(stranger, everything=True)
    assert (stranger.path / "thesis.tex").exists()
    run = make_run(tmp_path / "real")
    link = tmp_path / "link"
    link.symlink_to(run.path)
    with pytest.raises(LaunchError, match="is a link"):
        clean(RunDirectory(link), everything=True)


def test_links_are_removed_and_not_what_they_point_to(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (run.path / "code.tmp").symlink_to(tmp_path / "precious")
    (run.attempt_dir(1) / "link").symlink_to(tmp_path / "precious")
    items, notes = find_items(run)
    assert notes == []
    assert any(item.path.name == "code.tmp" for item in items)
    clean(run)
    assert (tmp_path / "precious" / "file").exists()
    assert not (run.path / "code.tmp").is_symlink()
