"""What `pretrain.train` does with parts that need no training; the rest is in tests/e2e."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from pretrain import dist, recovery, train
from pretrain.data.batch import BadSample
from pretrain.data.manifest import read_manifest
from pretrain.errors import CheckpointError, DataError
from pretrain.world import World


@pytest.fixture
def parts() -> Any:
    return MagicMock()


def test_restoring_lets_go_of_the_checkpoint(parts):
    reader = MagicMock(state={"engine": {"optimizer_step": 3}, "meter": {}, "guard": {}})
    train.restore(parts, reader)
    assert [name for name, _, _ in reader.method_calls] == ["close"]
    parts.engine.load_fragments.assert_called_once_with(
        reader.read, saved_shapes=reader.shapes, optimizer_step=3
    )


def test_a_checkpoint_leaves_no_bad_sample_unreported(parts, monkeypatch):
    """Its meter counts them, so whoever resumes from it would never name them."""
    parts.bad_samples = [BadSample("a-train-000003.tar", "000003_000007", "damaged")]
    dist.initialize(World(), torch.device("cpu"), timeout_seconds=30)
    try:
        train.save(parts, 5, must=True)
    finally:
        dist.shutdown()
    done = [name for name, _, _ in parts.mock_calls]
    assert done.index("recorder.event") < done.index("saver.save")
    parts.recorder.event.assert_called_once_with(
        "bad_sample", step=5, shard="a-train-000003.tar", key="000003_000007", reason="damaged"
    )
    assert parts.bad_samples == []


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_run_says_that_its_settings_were_measured_elsewhere(parts, monkeypatch, elsewhere):
    here = train.name_of(torch.device("cpu"))
    measured_on = "NVIDIA H100 80GB HBM3" if elsewhere else here
    monkeypatch.setattr(train, "tuned_on", lambda _: measured_on)
    train.report_device(parts.job, torch.device("cpu"), parts.recorder)
    said = [("tuned_elsewhere", {"measured_on": measured_on, "here": here})]
    calls = [(call.args[0], call.kwargs) for call in parts.recorder.event.call_args_list]
    assert calls == (said if elsewhere else [])


def test_a_run_does_not_go_on_with_another_class_order(monkeypatch, small_shards):
    """The same shards under another list: every label would mean another class."""
    manifest = read_manifest(small_shards.path)
    reordered = replace(manifest, classes=manifest.classes[::-1])
    state = {"data": manifest.fingerprint("train"), "guard": {}}
    reader = MagicMock(state=state, directory="step_00000005")
    monkeypatch.setattr(recovery, "newest_valid_for_all", lambda *_, **__: (reader, []))
    job = MagicMock(manifest=manifest, data_fingerprint=manifest.fingerprint("train"))
    assert recovery.find_checkpoint(job) == (reader, [])
    job = MagicMock(manifest=reordered, data_fingerprint=reordered.fingerprint("train"))
    with pytest.raises(CheckpointError, match="step_00000005: was trained on other shards than"):
        recovery.find_checkpoint(job)


def test_a_run_of_an_older_version_is_not_taken_up_half(monkeypatch):
    reader = MagicMock(state={"data": "same"}, directory="step_00000005")
    monkeypatch.setattr(recovery, "newest_valid_for_all", lambda *_, **__: (reader, []))
    with pytest.raises(CheckpointError, match=r"older version.*init_from=step_00000005"):
        recovery.find_checkpoint(MagicMock(data_fingerprint="same"))


@pytest.mark.parametrize("fails", [True, False])
def test_a_rank_that_fails_ends_without_its_peers(parts, monkeypatch, fails):
    """Taking NCCL's groups down waits for the other ranks, who wait in their next collective."""

    def run_steps(_: Any) -> str:
        if fails:
            raise DataError("this rank's shards only")
        return "stopped"

    monkeypatch.setattr(train, "StopRequest", MagicMock())
    monkeypatch.setattr(train, "check_health", lambda *_: None)
    monkeypatch.setattr(train, "open_store", MagicMock())
    monkeypatch.setattr(train, "find_checkpoint", lambda job: (None, []))
    monkeypatch.setattr(train, "watch", lambda _: MagicMock())
    monkeypatch.setattr(train, "Recorder", lambda *_, **__: nullcontext(MagicMock()))
    monkeypatch.setattr(train, "connect", lambda *_: parts)
    monkeypatch.setattr(train, "run_steps", run_steps)
    monkeypatch.setattr(train, "leave_outcome", lambda *_: None)
    monkeypatch.setattr(train.torch, "set_num_threads", lambda _: None)
    job: Any = SimpleNamespace(
        device="cpu", threads=1, run=MagicMock(), config=MagicMock(), attempt=1,
        world=SimpleNamespace(rank=0, size=1),
        plan=SimpleNamespace(total_steps=1, steps_per_epoch=1), facts=dict,
    )  # fmt: skip
    with pytest.raises(DataError) if fails else nullcontext():
        train.train(job)
    assert parts.engine.close.called is not fails
