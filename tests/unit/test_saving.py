"""What `pretrain.saving` asks of the store and makes of its answers."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from pretrain import saving
from pretrain.checkpoint.store import Finished
from pretrain.config.schema import EmaConfig
from pretrain.errors import CheckpointError, OwnershipError, StorageError
from pretrain.saving import Saver


@pytest.fixture
def saver(monkeypatch) -> Any:
    monkeypatch.setattr(saving, "learning_sha256", lambda _: "")
    monkeypatch.setattr(saving, "compare_ranks", lambda *_: None)
    made: Any = Saver(*(MagicMock() for _ in range(7)))
    made.job.config.checkpoint.every_steps = 4
    made.job.config.checkpoint.keep_best = 0
    made.job.config.ema = EmaConfig()
    made.store.finished.return_value = []
    return made


def finished(step: int, error: CheckpointError | None = None) -> Finished:
    return Finished(step, Path(f"step_{step:08d}"), error, 3.0, 1.0)


@pytest.mark.parametrize("must", [True, False])
def test_what_must_be_saved_is_waited_for_and_the_record_comes_first(saver, must):
    saver.save(8, must=must)
    asked = saver.store.save.call_args
    assert asked.args[0] == 8
    assert asked.kwargs["wait"] is must
    assert asked.kwargs["before_commit"] == saver.recorder.sync
    assert asked.kwargs["accuracy_fraction"] is None


@pytest.mark.parametrize(
    ("error", "must", "raised"),
    [
        (StorageError("full"), False, False),
        (StorageError("full"), True, True),
        (CheckpointError("a gap"), False, False),
        (OwnershipError("taken"), False, True),
    ],
)
def test_a_failure_is_told_or_ends_the_attempt(saver, error, must, raised):
    saver.store.save.side_effect = error
    with pytest.raises(type(error)) if raised else nullcontext():
        saver.save(8, must=must)
    assert saver.recorder.event.called is not raised
    if not raised:
        saver.recorder.event.assert_called_once_with("checkpoint_failed", step=8, reason=str(error))


def test_what_the_background_did_is_told_at_a_later_step(saver):
    saver.store.finished.return_value = [finished(4), finished(8, StorageError("full"))]
    saver.report(9)
    saver.recorder.progress.assert_called_once_with(9, "training", last_checkpoint_step=4)
    kinds = [(call.args[0], call.kwargs["step"]) for call in saver.recorder.event.mock_calls]
    assert kinds == [("checkpoint_saved", 4), ("checkpoint_failed", 8)]
    assert saver.clock.count_save.call_count == 2
    saver.clock.count_save.assert_called_with(write_seconds=3.0, wait_seconds=1.0)
    saver.store.finished.return_value = [finished(12, OwnershipError("taken"))]
    with pytest.raises(OwnershipError):
        saver.report(13)


def test_the_accuracy_of_a_step_goes_with_that_step_alone(saver):
    saver.note_accuracy(6, {"eval/probe_top1_fraction": 0.2, "eval/top1_fraction": 0.5})
    saver.save(6, must=False)
    assert saver.store.save.call_args.kwargs["accuracy_fraction"] == 0.5
    saver.save(8, must=False)
    assert saver.store.save.call_args.kwargs["accuracy_fraction"] is None
    saver.note_accuracy(9, {"eval/probe_top1_fraction": 0.2})
    saver.save(9, must=False)
    assert saver.store.save.call_args.kwargs["accuracy_fraction"] == 0.2


@pytest.mark.parametrize(("result", "accuracy"), [("ema", 0.25), ("raw", 0.5)])
def test_the_accuracy_is_that_of_the_weights_that_the_run_gives(saver, result, accuracy):
    saver.job.config.ema = EmaConfig(decay=0.9, result=result)
    saver.note_accuracy(6, {"eval/top1_fraction": 0.5, "eval/ema_top1_fraction": 0.25})
    saver.save(6, must=False)
    assert saver.store.save.call_args.kwargs["accuracy_fraction"] == accuracy


def test_evaluated_steps_are_due_where_the_best_are_kept(saver):
    saver.note_accuracy(6, {"eval/top1_fraction": 0.5})
    assert [saver.is_due(step) for step in (4, 6, 7)] == [True, False, False]
    saver.job.config.checkpoint.keep_best = 1
    assert [saver.is_due(step) for step in (4, 6, 7)] == [True, True, False]
    saver.note_accuracy(7, {"eval/loss": 0.5})
    assert not saver.is_due(7)


def test_settling_waits_before_it_tells(saver):
    saver.settle(9)
    asked = [name for name, _, _ in saver.store.mock_calls]
    assert asked == ["wait", "finished"]
