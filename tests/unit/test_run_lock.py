"""The lock of a run: held by one, seen by all, never kept by who did not get it."""

import os

import pytest

from pretrain import run_lock as module
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import LOCK_TRIES, lock_holder, run_lock, start_ticks, try_lock


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDirectory:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return RunDirectory(tmp_path)


def test_one_holds_it_and_says_who(run):
    assert lock_holder(run) is None
    with run_lock(run, "17") as held:
        assert held
        holder = lock_holder(run)
        assert holder is not None
        assert (holder["pid"], holder["job"]) == (os.getpid(), "17")
        assert holder["ticks"] == start_ticks(os.getpid())
        with run_lock(run, "18") as other:
            assert not other
    assert lock_holder(run) is None


@pytest.mark.parametrize("tries_that_fail", range(LOCK_TRIES + 2))
def test_whichever_try_succeeds_it_is_held_inside_and_free_after(run, monkeypatch, tries_that_fail):
    tries = []

    def try_late(path):
        tries.append(path)
        return try_lock(path) if len(tries) > tries_that_fail else None

    monkeypatch.setattr(module, "try_lock", try_late)
    with run_lock(run, "17") as held:
        assert held == (tries_that_fail <= LOCK_TRIES)
    monkeypatch.undo()
    assert lock_holder(run) is None
    free = try_lock(run.lock_path)
    assert free is not None
    os.close(free)
