"""Real training on a private Slurm cluster dies in many ways and ends as if it never had."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from soak import Soak, let_die, prepared
from soak_run import EPOCH_STEPS, WatchedRun, differences, records, wait_until

from launch.ledger import read_attempts

pytestmark = pytest.mark.slow

EPOCHS = 16
FAULTS = [
    "limit_signal",
    "other_node_killed",
    "submitted_twice",
    "preempt_0",
]
"""The others are left to ``benchmarks/soak.py``: 15 to 140 seconds each."""


@pytest.fixture(scope="module")
def soak(slurm_is_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    with prepared(tmp_path_factory.mktemp("soak"), epochs=EPOCHS) as soak:
        yield soak


def test_a_run_survives_one_death_after_another_and_is_its_twin_to_the_bit(soak: Soak) -> None:
    run = soak.watch("survivor")
    endured = let_die(run, FAULTS, random.Random(0))
    assert differences(run, soak.twin) == []
    assert [one.kind for one in endured] == FAULTS
    # What a signal announces is saved; what comes without one costs what was not saved yet.
    lost = {one.kind: one.lost_steps for one in endured}
    assert lost["limit_signal"] == lost["submitted_twice"] == 0
    assert len(read_attempts(run.directory)) >= 4
    (alone,) = read_attempts(soak.twin.directory)
    assert alone.outcome == "done"


def test_the_number_of_nodes_changes_in_mid_epoch_and_no_sample_is_missed(soak: Soak) -> None:
    run = soak.watch("elastic")
    layouts = []
    for nodes, stop_after in ((2, 7), (1, 15), (2, None)):
        assert "submitted as job" in run.launch(f"cluster.nodes={nodes}")
        plan = json.loads(run.directory.plan_path.read_text())
        layouts.append([plan[name] for name in ("nodes", "micro_batch", "accumulation")])
        assert plan["global_batch"] == 16
        if stop_after is None:
            run.wait_until_done()
        else:
            stop_at(run, stop_after, len(layouts))
    assert layouts == [[2, 8, 1], [1, 8, 2], [2, 8, 1]]

    (expected,) = soak.twin.samples().values()
    steps = [
        (step, found)
        for _, steps in sorted(run.samples().items())
        for step, found in sorted(steps.items())
    ]
    assert [step for step, _ in steps] == list(range(EPOCHS * EPOCH_STEPS))
    assert all(of_all(found) == of_all(expected[step]) for step, found in steps)
    assert {len(found) for _, found in steps} == {1, 2}
    for first in range(0, len(steps), EPOCH_STEPS):
        ids = [row[0] for _, found in steps[first : first + EPOCH_STEPS] for row in of_all(found)]
        assert sorted(ids) == list(range(16 * EPOCH_STEPS))
    for mine, twins in zip(records(run), records(soak.twin), strict=True):
        for name in ("step", "train/learning_rate", "data/samples_consumed", "eval/images"):
            assert mine.get(name) == twins.get(name)
        if "train/loss" in mine:
            assert mine["train/loss"] == pytest.approx(twins["train/loss"], rel=1e-3)


def stop_at(run: WatchedRun, step: int, attempt: int) -> None:
    """Cancel the job in mid-epoch; it saves."""
    wait_until(
        lambda: (newest := run.newest_record())["attempt"] == attempt and newest["step"] >= step,
        f"step {step}",
    )
    subprocess.run(["scancel", run.job()], check=True)
    wait_until(lambda: run.field("JobState") == "CANCELLED", "the job to end")
    saved = run.directory.newest_checkpoint_step()
    assert saved is not None
    assert saved >= step
    assert read_attempts(run.directory)[-1].outcome == "stopped"


def of_all(ranks: dict[int, list[list[int]]]) -> list[list[int]]:
    """What all ranks consumed in a step, in an order that does not depend on their number."""
    return sorted(row for rows in ranks.values() for row in rows)
