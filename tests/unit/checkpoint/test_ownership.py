import json
import os
import socket

import pytest

from pretrain.checkpoint import ownership as module
from pretrain.checkpoint.ownership import areas, check_owner, number_of, take_over
from pretrain.errors import OwnershipError


def test_numbers_only_grow(tmp_path):
    directory = tmp_path / "made" / "on demand"
    taken = [take_over(directory, wanted) for wanted in (1, 1, 9, 3)]
    assert [number_of(area) for area in taken] == [1, 2, 9, 10]
    assert areas(directory) == [directory / taken[-1]]
    owner = json.loads((directory / taken[-1] / "owner.json").read_text())
    assert (owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname())


def test_the_one_before_can_neither_commit_nor_delete(tmp_path):
    first = tmp_path / take_over(tmp_path, 1)
    stage = first / "step_00000001"
    stage.mkdir()
    (stage / "rank_00000.safetensors").write_bytes(b"whole")
    (tmp_path / "step_00000009").mkdir()
    second = take_over(tmp_path, 1)
    with pytest.raises(FileNotFoundError):
        stage.rename(tmp_path / "step_00000001")
    with pytest.raises(FileNotFoundError):
        (tmp_path / "step_00000009").rename(first / "step_00000009.old")
    with pytest.raises(FileNotFoundError):
        stage.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [second, "step_00000009"]


def test_who_took_over_is_said(tmp_path):
    first = take_over(tmp_path, 1)
    check_owner(tmp_path, first)
    check_owner(tmp_path, take_over(tmp_path, 1))
    with pytest.raises(OwnershipError, match=rf"attempt 2 \(process {os.getpid()} on .*attempt 1"):
        check_owner(tmp_path, first)


def test_a_handle_on_the_old_directory_commits_nothing(tmp_path):
    """As a client of a network file system has one, whatever the directory is called by now."""
    area = tmp_path / take_over(tmp_path, 1)
    (area / "step_00000001").mkdir()
    handle = os.open(area, os.O_RDONLY)
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
    (tmp_path / "attempt_00000004_00000000.old" / "step_00000001.dead").mkdir(parents=True)
    (tmp_path / "attempt_00000005_00000000" / "step_00000001").mkdir(parents=True)
    area = take_over(tmp_path, 1)
    assert number_of(area) == 6
    assert [path.name for path in tmp_path.iterdir()] == [area]


def test_who_comes_late_with_a_lesser_number_tries_again(tmp_path, monkeypatch):
    """It looked before the other took over, and makes its directory afterwards."""
    take_over(tmp_path, 1)
    looked = []

    def look(directory):
        looked.append(areas(directory))
        if len(looked) == 1:
            monkeypatch.setattr(module, "areas", areas)
            take_over(directory, 7)
            monkeypatch.setattr(module, "areas", look)
        return looked[-1]

    monkeypatch.setattr(module, "areas", look)
    area = take_over(tmp_path, 1)
    assert number_of(area) == 8
    assert [path.name for path in tmp_path.iterdir()] == [area]
