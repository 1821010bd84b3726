"""Only what a step is held up by counts, where it is held up."""

from types import SimpleNamespace

import pytest
import torch

from pretrain.engine import waits as module
from pretrain.engine.waits import Waits


class Work:
    """A collective under way."""

    def __init__(self, pass_time):
        self.wait = pass_time
        self.rank = 3


@pytest.fixture
def now(monkeypatch):
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    return clock


def passing(now, seconds, result=None):
    def pass_time(*args, **kwargs):
        now.seconds += seconds
        return result

    return pass_time


def test_a_collective_that_blocks_counts_from_call_to_return(now):
    waits = Waits(torch.device("cpu"))
    assert waits.around(passing(now, 2.0))("tensor", group=None) is None
    now.seconds += 100  # computing
    waits.around(passing(now, 3.0))()
    assert waits.seconds() == 5.0


def test_one_under_way_counts_where_it_is_waited_for(now):
    waits = Waits(torch.device("cpu"))
    work = waits.around(passing(now, 0.5, Work(passing(now, 4.0, True))))()
    now.seconds += 100  # computing beside it
    assert work.wait() is True
    assert work.rank == 3
    assert waits.seconds() == 4.5
