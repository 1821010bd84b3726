"""Which rank is at fault when all stand still, from what faulthandler writes."""

import faulthandler
import threading
from pathlib import Path

import pytest

from launch.supervise.hang import Stack, find_culprit, read_stack, read_stacks
from pretrain.run_directory import RunDirectory

DUMP = """\
hung: step took more than 900 s; stacks: /x
Current thread 0x00007f01 (most recent call first):
  File "/code/pretrain/watchdog.py", line 120 in _give_up
  File "/usr/lib/threading.py", line 1002 in _bootstrap

Thread 0x00007f02 (most recent call first):
  File "/venv/torch/distributed/distributed_c10d.py", line 2800 in all_reduce
  File "/code/pretrain/engine/engine.py", line 90 in train_step
  File "<frozen runpy>", line 198 in _run_module_as_main
"""


def stack(*frames: str, phase: str | None = "step") -> Stack:
    return Stack(frames, phase)


WAITS = stack("/venv/torch/distributed/distributed_c10d.py:2800 all_reduce", "/a/engine.py:9 step")
WAITS_ELSEWHERE = stack(
    "/venv/torch/distributed/distributed_c10d.py:3100 all_gather", "/a/b.py:1 f"
)
STOPPED = Stack(WAITS.frames, "step", stopped=True)
READS = stack("/code/pretrain/data/loader.py:40 next", "/a/train.py:9 run_steps", phase=None)


def test_the_main_thread_of_the_newest_dump_counts() -> None:
    found = read_stack(DUMP)
    assert found is not None
    assert found.phase == "step"
    assert found.frames[0].endswith("distributed_c10d.py:2800 all_reduce")
    assert len(found.frames) == 3
    assert found.waits_for_peers
    assert not found.stopped
    later = read_stack(DUMP + DUMP.replace("line 2800 in all_reduce", "line 1 in later"))
    assert later is not None
    assert later.frames[0].endswith("distributed_c10d.py:1 later")
    assert read_stack("") is None
    assert read_stack("hung: step took more than 9 s; stacks: /x\n") is None


def test_what_python_really_writes_is_understood(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.attempt_dir(1).mkdir(parents=True)
    path = run.stacks_path(1, 0)

    def write() -> None:
        with path.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    run.stacks_path(1, 1).touch()
    stacks = read_stacks(run, 1, 3)
    assert list(stacks) == [0]
    assert any("test_what_python_really_writes" in frame for frame in stacks[0].frames)


@pytest.mark.parametrize(
    ("stacks", "size", "culprits", "why"),
    [
        ({0: WAITS, 1: WAITS, 3: WAITS}, 4, (2,), "wrote no stacks"),
        ({0: WAITS, 1: WAITS}, 4, (2, 3), "wrote no stacks"),
        ({0: WAITS, 1: WAITS, 2: READS, 3: STOPPED}, 4, (3,), "stood still"),
        ({0: STOPPED, 1: STOPPED, 2: READS}, 3, (0, 1), "stood still"),
        ({0: STOPPED, 1: STOPPED, 2: WAITS}, 4, (3,), "wrote no stacks"),
        ({0: WAITS, 1: READS}, 2, (1,), "loader.py:40 next while the others waited"),
        ({0: WAITS, 1: WAITS, 2: WAITS_ELSEWHERE}, 3, (2,), "unlike most"),
        ({0: READS, 1: READS, 2: stack("/a/b.py:1 f")}, 3, (2,), "unlike most"),
    ],
)
def test_the_culprit(
    stacks: dict[int, Stack], size: int, culprits: tuple[int, ...], why: str
) -> None:
    found = find_culprit(stacks, size)
    assert found is not None
    assert found.ranks == culprits
    assert why in found.why


@pytest.mark.parametrize(
    "stacks",
    [
        {},
        {0: WAITS, 1: WAITS},
        {0: WAITS, 1: WAITS_ELSEWHERE},
        {0: READS, 1: READS},
        {0: STOPPED, 1: STOPPED},
    ],
)
def test_nobody_is_blamed_without_reason(stacks: dict[int, Stack]) -> None:
    assert find_culprit(stacks, 2) is None


def test_where_only_the_way_there_differs_that_tells() -> None:
    same = WAITS.frames[0]
    stacks = {rank: stack(same, "/a/engine.py:9 step") for rank in (0, 1)}
    found = find_culprit({**stacks, 2: stack(same, "/a/recovery.py:1 compare_ranks")}, 3)
    assert found is not None
    assert found.ranks == (2,)
