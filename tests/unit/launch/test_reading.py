"""Which log is shown, and how much of it."""

import io
import threading
from pathlib import Path

import pytest
from fabricated import add_attempt, make_run

from launch.look_after import logs, reading
from launch.look_after.logs import last_lines, log_tail
from launch.look_after.reading import show_logs
from pretrain.errors import LaunchError
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import run_lock


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = make_run(tmp_path)
    add_attempt(run, 1)
    add_attempt(run, 2)
    return run


def show(run: RunDirectory, **changes: object) -> int:
    options: dict = {"attempt": None, "rank": 0, "supervisor": False, "every": False}
    options |= {"lines": 50, "keep_on": False}
    return show_logs(run, **(options | changes))


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, "rank 0 of attempt 2\n"),
        ({"rank": 1}, "rank 1 of attempt 2\n"),
        ({"attempt": 1}, "rank 0 of attempt 1\n"),
        ({"supervisor": True}, "supervisor of attempt 2\n"),
        ({"supervisor": True, "attempt": 1, "lines": None}, "supervisor of attempt 1\n"),
    ],
)
def test_the_log_that_was_asked_for(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], options: dict, shown: str
) -> None:
    assert show(run, **options) == 0
    assert capsys.readouterr().out == shown


def test_every_log_below_its_name(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    show(run, every=True)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"==> {run.attempt_dir(2)}/supervisor.log <==",
        "supervisor of attempt 2",
        f"==> {run.rank_log(2, 0)} <==",
        "rank 0 of attempt 2",
        f"==> {run.rank_log(2, 1)} <==",
        "rank 1 of attempt 2",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempt": 7}, "--attempt 7: first has attempt 1 to 2"),
        ({"rank": 9}, "--rank 9: attempt 2 has log of rank 0 to 1"),
    ],
)
def test_a_log_that_is_not_there_names_those_that_are(
    run: RunDirectory, options: dict, message: str
) -> None:
    with pytest.raises(LaunchError, match=message):
        show(run, **options)


def test_before_the_first_attempt_the_jobs_own_log_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    with pytest.raises(LaunchError, match="no attempt was made yet"):
        show(run)
    run.submitit_dir.mkdir()
    (run.submitit_dir / "7_0_log.out").write_text("ModuleNotFoundError: nothing\n")
    show(run)
    assert "ModuleNotFoundError: nothing\n" in capsys.readouterr().out
    assert log_tail(run.rank_log(1, 0)) == []


@pytest.mark.parametrize("block_bytes", [1, 7, 4096])
@pytest.mark.parametrize("end", ["", "\n"])
def test_last_lines_of_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, end: str
) -> None:
    monkeypatch.setattr(logs, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "log"
    lines = ["first é", "", "third", "", "täil"]
    path.write_text("\n".join(lines) + end)
    for count in range(1, 7):
        assert last_lines(path, count) == lines[-count:]
    path.write_text("")
    assert last_lines(path, 3) == []


def test_little_of_a_large_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 99 + b"\n")
    with path.open("ab") as file:
        file.truncate(10 * 2**30)  # sparse: reading all of it would take minutes
        file.seek(0, 2)
        file.write(b"\nnext to last\nlast\n")
    assert last_lines(path, 2) == ["next to last", "last"]


def test_following_shows_what_comes_and_the_next_attempt_and_ends_with_the_run(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr(reading, "LOOK_SECONDS", 0.01)
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with run_lock(run, "7"):
            held.set()
            leave.wait(60)

    def wait_for(text: str) -> None:
        for _ in range(6000):
            if text in screen.getvalue():
                return
            follower.join(0.01)
        pytest.fail(f"never shown: {text!r} in {screen.getvalue()!r}")

    holder = threading.Thread(target=hold)
    follower = threading.Thread(target=lambda: show(run, keep_on=True, lines=1))
    holder.start()
    assert held.wait(60)
    try:
        follower.start()
        wait_for("rank 0 of attempt 2\n")
        with run.rank_log(2, 0).open("a") as log:
            log.write("more\nhalf a li")
            log.flush()
            wait_for("more\n")
            assert "half" not in screen.getvalue()
            log.write("ne\n")
        wait_for("half a line\n")
        add_attempt(run, 3, outcome="stopped")
        wait_for(f"==> {run.rank_log(3, 0)} <==\nrank 0 of attempt 3\n")
        with run.rank_log(3, 0).open("a") as log:
            log.write("no end of line")
    finally:
        leave.set()
        holder.join()
        follower.join(60)
    assert "no end of line" in screen.getvalue()
    assert "first: stopped: why\n" in screen.getvalue()
