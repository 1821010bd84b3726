"""Absent signs of life, by a clock that the test moves."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.supervise.ranks import Layout
from launch.supervise.signs import MARGIN_SECONDS, Signs
from pretrain.config.guard import WatchdogConfig
from pretrain.run_directory import RunDirectory


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Watched:
    """Four ranks on two nodes in attempt 2."""

    def __init__(self, path: Path) -> None:
        self.run = RunDirectory(path)
        self.run.attempt_dir(2).mkdir(parents=True)
        self.clock = Clock()
        config: Any = SimpleNamespace(
            cluster=SimpleNamespace(launch_timeout_seconds=300, start_timeout_seconds=2400),
            watchdog=WatchdogConfig(step_seconds=900.0),
        )
        layout = Layout(nodes=2, ranks_per_node=2)
        self.signs = Signs(self.run, 2, layout, ("n1", "n2"), config, self.clock)

    def launched(self, *ranks: int) -> None:
        for rank in ranks:
            self.run.rank_log(2, rank).touch()

    def beat(self, node: str, phase: str = "step", seconds: float = 900.0) -> None:
        beat = {"phase": phase, "seconds": seconds, "time": self.clock.seconds}
        self.run.heartbeat_path(2, node).write_text(json.dumps(beat))

    def progress(self, attempt: int) -> None:
        standing = {"attempt": attempt, "state": "evaluating", "time": self.clock.seconds}
        self.run.progress_path.write_text(json.dumps(standing))


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_ranks_that_were_not_launched_are_named(watched: Watched) -> None:
    watched.launched(0, 1, 2)
    watched.clock.seconds += 299
    assert watched.signs.missing() is None
    assert watched.signs.phase() == "launch"
    watched.clock.seconds += 2
    failure = watched.signs.missing()
    assert failure is not None
    assert (failure.cause, failure.rank, failure.node) == ("never_started", 3, "n2")
    assert failure.reason == "rank 3 was not launched on n2 within 300 s"


def test_ranks_that_never_meet_end_the_attempt(watched: Watched) -> None:
    watched.launched(0, 1, 2, 3)
    watched.progress(attempt=1)  # of the attempt before
    watched.clock.seconds += 2399
    assert watched.signs.missing() is None
    assert watched.signs.phase() == "join"
    watched.clock.seconds += 2
    failure = watched.signs.missing()
    assert failure is not None
    assert (failure.cause, failure.rank, failure.phase) == ("never_started", None, "join")


def test_a_node_that_falls_silent_is_named(watched: Watched) -> None:
    watched.launched(0, 1, 2, 3)
    for _ in range(100):
        watched.clock.seconds += 30
        watched.beat("n1")
        if watched.clock.seconds < 1000:
            watched.beat("n2")
        failure = watched.signs.missing()
        if failure is not None:
            break
    else:
        raise AssertionError("a silent node went unnoticed")
    silent = watched.clock.seconds - 1000
    assert 900 + MARGIN_SECONDS - 60 < silent < 900 + MARGIN_SECONDS + 61
    assert (failure.cause, failure.rank, failure.node) == ("rank_hung", 2, "n2")
    assert (failure.phase, watched.signs.phase()) == ("step", "step")


def test_a_long_phase_is_no_silence(watched: Watched) -> None:
    watched.beat("n1", "save", 3600.0)
    watched.beat("n2", "save", 3600.0)
    watched.clock.seconds += 10
    assert watched.signs.missing() is None
    watched.clock.seconds += 3500
    assert watched.signs.missing() is None


def test_progress_alone_is_a_sign(watched: Watched) -> None:
    watched.progress(attempt=2)
    watched.clock.seconds += 3000
    assert watched.signs.missing() is None
    assert watched.signs.phase() == "evaluation"
    watched.clock.seconds += 3600 + MARGIN_SECONDS + 1
    failure = watched.signs.missing()
    assert failure is not None
    assert "rank zero has given no sign of life" in failure.reason


def test_stacks_show_that_a_rank_gave_up(watched: Watched) -> None:
    watched.clock.seconds += 2
    path = watched.run.stacks_path(2, 1)
    path.touch()
    assert not watched.signs.stacks_written()
    path.write_text("hung: step took more than 900 s")
    assert not watched.signs.stacks_written(), "it was looked at this very second"
    watched.clock.seconds += 2
    assert watched.signs.stacks_written()
