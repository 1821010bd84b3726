import json
import os
import socket

import pytest

from pretrain.checkpoint.ownership import check_owner, numbers_taken, take_over
from pretrain.errors import OwnershipError


def test_numbers_only_grow(tmp_path):
    directory = tmp_path / "made" / "on demand"
    assert [take_over(directory, 1), take_over(directory, 1), take_over(directory, 9)] == [1, 2, 9]
    assert take_over(directory, 3) == 10
    assert sorted(numbers_taken(directory).values()) == [10]
    owner = json.loads((directory / "attempt_00000010" / "owner.json").read_text())
    assert (owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname())


def test_the_one_before_can_neither_commit_nor_delete(tmp_path):
    first = tmp_path / f"attempt_{take_over(tmp_path, 1):08d}"
    stage = first / "step_00000001"
    stage.mkdir()
    (stage / "rank_00000.safetensors").write_bytes(b"whole")
    (tmp_path / "step_00000009").mkdir()
    take_over(tmp_path, 1)
    with pytest.raises(FileNotFoundError):
        stage.rename(tmp_path / "step_00000001")
    with pytest.raises(FileNotFoundError):
        (tmp_path / "step_00000009").rename(first / "step_00000009.old")
    with pytest.raises(FileNotFoundError):
        stage.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt_00000002", "step_00000009"]


def test_who_took_over_is_said(tmp_path):
    take_over(tmp_path, 1)
    check_owner(tmp_path, 1)
    take_over(tmp_path, 1)
    check_owner(tmp_path, 2)
    with pytest.raises(OwnershipError, match=rf"attempt 2 \(process {os.getpid()} on .*attempt 1"):
        check_owner(tmp_path, 1)


def test_a_handle_on_the_old_directory_commits_nothing(tmp_path):
    """As a client of a network file system has one, whatever the directory is called by now."""
    take_over(tmp_path, 1)
    (tmp_path / "attempt_00000001" / "step_00000001").mkdir()
    handle = os.open(tmp_path / "attempt_00000001", os.O_RDONLY)
    to = os.open(tmp_path, os.O_RDONLY)
    take_over(tmp_path, 2)
    for work in (
        lambda: os.rename("step_00000001", "step_00000001", src_dir_fd=handle, dst_dir_fd=to),
        lambda: os.mkdir("step_00000001", dir_fd=handle),
    ):
        with pytest.raises(FileNotFoundError):
            work()
    os.close(handle)
    os.close(to)


def test_what_a_dead_takeover_left_is_cleared(tmp_path):
    (tmp_path / "attempt_00000004.old" / "step_00000001.dead").mkdir(parents=True)
    (tmp_path / "attempt_00000005" / "step_00000001").mkdir(parents=True)
    assert take_over(tmp_path, 1) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["attempt_00000006"]
