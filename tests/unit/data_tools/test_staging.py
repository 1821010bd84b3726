import errno
import fcntl
import os

import pytest

from data_tools.staging import check_destination, staged
from pretrain.errors import DataError


def test_the_destination_appears_at_the_end(tmp_path):
    destination = tmp_path / "new" / "set"
    with staged(destination) as stage:
        (stage / "file").write_text("x")
        assert not destination.exists()
    assert [entry.name for entry in destination.iterdir()] == ["file"]
    assert [entry.name for entry in destination.parent.iterdir()] == ["set"]


def test_an_empty_destination_is_taken(tmp_path):
    (tmp_path / "set").mkdir()
    with staged(tmp_path / "set") as stage:
        (stage / "file").write_text("x")
    assert (tmp_path / "set" / "file").exists()


def test_nothing_stays_after_a_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "set") as stage:
        (stage / "file").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path):
    left = tmp_path / ".set.partial"
    (left / "folder").mkdir(parents=True)
    (left / "old").write_text("x")
    with staged(tmp_path / "set") as stage:
        assert sorted(entry.name for entry in stage.iterdir()) == [".lock"]
        (stage / "new").write_text("x")
    assert [entry.name for entry in (tmp_path / "set").iterdir()] == ["new"]


def test_a_disk_that_takes_no_more_is_named_and_finished_work_kept(tmp_path):
    plan: dict[str, object] = {"seed": 1}
    message = r"\.set\.partial: cannot be written: No space left on device; make room there, then"
    with (
        pytest.raises(DataError, match=message),
        staged(tmp_path / "set", plan=plan, done="*.done") as stage,
    ):
        (stage / "a.done").write_text("x")
        (stage / "b.done.7.tmp").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with staged(tmp_path / "set", plan=plan, done="*.done") as stage:
        names = sorted(entry.name for entry in stage.iterdir())
        assert names == [".lock", ".plan.json", "a.done"]
    assert list((tmp_path / "set").iterdir()) == []


def test_other_failures_to_write_promise_nothing(tmp_path):
    with (
        pytest.raises(DataError, match=r"cannot be written: Input/output error$"),
        staged(tmp_path / "set"),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_are_refused(tmp_path):
    left = tmp_path / ".set.partial"
    left.mkdir()
    (left / "half").write_text("x")
    other = os.open(left / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with (
            pytest.raises(DataError, match="another process is making it"),
            staged(tmp_path / "set"),
        ):
            pytest.fail("entered")
        assert (left / "half").exists()
    finally:
        os.close(other)


def test_other_content_is_refused_and_kept(tmp_path):
    for name in "dcba":
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"holds 4 entries \(a, b, c, …\); choose another"):
        check_destination(tmp_path)
    with pytest.raises(DataError, match="4 entries"), staged(tmp_path):
        pytest.fail("entered")
    assert len(list(tmp_path.iterdir())) == 4


def test_files_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="expected a directory, it is a file"):
        check_destination(tmp_path / "file")


def test_unwritable_places_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(DataError, match=r"cannot be made.*choose a directory"),
        staged(tmp_path / "file" / "set"),
    ):
        pytest.fail("entered")
