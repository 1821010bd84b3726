"""The loader's worker processes: what they read, which signals they outlive, and their end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pretrain.config.schema import AugmentConfig, DataConfig, EvalConfig
from pretrain.data.loader import Batches, eval_batches, train_batches
from pretrain.data.manifest import index_path, read_manifest
from pretrain.errors import DataError
from pretrain.world import World


def start(path: Path, workers: int, first_step: int = 0, last_step: int = 12) -> Batches:
    data = DataConfig(path=str(path), workers_per_rank=workers, lanes=3, window_shards=1)
    return train_batches(
        read_manifest(path), data, AugmentConfig(), seed=1, image_size=16, global_batch=16,
        micro_batch=8, accumulation=2, world=World(), first_step=first_step, last_step=last_step,
    )  # fmt: skip


def children() -> list[int]:
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return [int(child) for child in path.read_text().split()]


def gone_or_dead(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"


def wait_until_gone(processes: list[int]) -> None:
    for _ in range(600):
        if all(map(gone_or_dead, processes)):
            return
        time.sleep(0.05)
    pytest.fail(f"still alive: {[p for p in processes if not gone_or_dead(p)]}")


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(small_shards, workers):
    with start(small_shards.path, 0) as alone, start(small_shards.path, workers) as batches:
        count = 0
        for expected, batch in zip(alone, batches, strict=True):
            assert torch.equal(batch.images, expected.images)
            assert batch.sample_ids.tolist() == expected.sample_ids.tolist()
            assert batch.labels.tolist() == expected.labels.tolist()
            count += 1
    assert count == 24


def test_workers_start_at_any_step(small_shards):
    with start(small_shards.path, 0) as alone, start(small_shards.path, 2, first_step=7) as late:
        expected = [batch.sample_ids.tolist() for batch in alone][14:]
        assert [batch.sample_ids.tolist() for batch in late] == expected


def test_evaluation_with_workers_is_complete(small_shards):
    data = DataConfig(path=str(small_shards.path), workers_per_rank=2)
    manifest = read_manifest(small_shards.path)
    with eval_batches(
        manifest, "validation", data, EvalConfig(batch_size_per_rank=3), image_size=16,
        world=World(),
    ) as batches:  # fmt: skip
        ids = [i for batch in batches for i in batch.sample_ids[batch.valid].tolist()]
    assert ids == list(range(manifest.split("validation").samples))


def test_signals_for_the_job_do_not_reach_the_workers(small_shards):
    before = set(children())
    with start(small_shards.path, 2) as batches:
        next(batches)
        workers = [process for process in children() if process not in before]
        assert len(workers) >= 2
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            for worker in workers:
                os.kill(worker, number)
        assert len(list(batches)) == 23


def test_closing_ends_the_workers(small_shards):
    before = set(children())
    batches = start(small_shards.path, 2)
    next(batches)
    workers = [process for process in children() if process not in before]
    batches.close()
    wait_until_gone(workers)


SIGNALLED = """
import os, signal, sys
from test_loader_processes import children, start
signal.signal(signal.SIGTERM, lambda *_: None)
with start(sys.argv[1], 2) as batches:
    for worker in children():
        os.kill(worker, signal.SIGTERM)
    print(sum(1 for _ in batches))
"""

LEAVING = """
import os, signal, sys
from test_loader_processes import children, start
batches = start(sys.argv[1], 2)
next(batches)
if sys.argv[2] == "a worker died":
    os.kill(children()[-1], signal.SIGKILL)
    list(batches)
raise RuntimeError("no more of this")
"""

RANK = """
import json, sys, time
from test_loader_processes import children, start
batches = start(sys.argv[1], 2, 0, 10**6)
next(batches)
print(json.dumps(children()), flush=True)
time.sleep(600)
"""


def python(code: str, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip


def test_a_signal_that_comes_while_the_workers_start_does_not_reach_them(small_shards):
    output, errors = python(SIGNALLED, str(small_shards.path)).communicate(timeout=120)
    assert output == "24\n", errors


@pytest.mark.parametrize("why", ["a worker died", "another error"])
def test_a_rank_that_leaves_without_closing_does_not_wait(small_shards, why):
    rank = python(LEAVING, str(small_shards.path), why)
    _, errors = rank.communicate(timeout=120)
    assert rank.returncode == 1
    expected = "exited unexpectedly" if why == "a worker died" else "no more of this"
    assert expected in errors


def test_workers_die_with_their_rank(small_shards):
    rank = python(RANK, str(small_shards.path))
    assert rank.stdout is not None
    try:
        workers = json.loads(rank.stdout.readline())
        assert len(workers) >= 2
    finally:
        rank.kill()
        rank.wait()
    wait_until_gone(workers)


def test_an_error_in_a_worker_is_one_clear_line(small_shards, tmp_path):
    for file in small_shards.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for shard in read_manifest(tmp_path).split("train").shards:
        path = index_path(tmp_path, shard)
        path.write_bytes(b"\1" * path.stat().st_size)
    with start(tmp_path, 1) as batches, pytest.raises(DataError) as caught:
        list(batches)
    assert "index damaged" in str(caught.value)
    assert "\n" not in str(caught.value)
