"""When a run is measured, on which splits, and that a probe counts what its classes say."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain import dist
from pretrain.accuracy import images_due, is_due, measure
from pretrain.config.schema import AugmentConfig, DataConfig, EvalConfig, ProbeConfig
from pretrain.data.loader import eval_batches
from pretrain.data.manifest import read_manifest
from pretrain.data.remote import LAUNCH_PATIENCE
from pretrain.errors import DataError
from pretrain.evaluate.probe import open_probe
from pretrain.metrics.names import check_declared
from pretrain.world import World

CPU = torch.device("cpu")
HEAD = ("n00000009", "n00000003", "n00000002", "n00000001", "n00000000", "n00000007", "n00000008")


def job_of(*, own: int | None = 10, probe_epochs: int | None = 1, **fields: Any) -> Any:
    settings = None if probe_epochs is None else SimpleNamespace(every_epochs=probe_epochs)
    config = SimpleNamespace(
        eval=SimpleNamespace(probe=settings), data=SimpleNamespace(eval_split="validation")
    )
    plan = SimpleNamespace(
        eval_samples=0 if own is None else 5,
        probe_samples=3,
        eval_every_steps=own,
        steps_per_epoch=4,
        total_steps=42,
    )
    return SimpleNamespace(config=config, plan=plan, **fields)


@pytest.mark.parametrize(
    ("own", "probe_epochs", "due"),
    [
        (10, None, {10: 5, 20: 5, 30: 5, 40: 5, 42: 5}),
        (None, 3, {12: 3, 24: 3, 36: 3, 42: 3}),
        (10, 3, {10: 5, 12: 3, 20: 5, 24: 3, 30: 5, 36: 3, 40: 5, 42: 8}),
        (None, None, {}),
    ],
)
def test_each_split_has_its_own_period_and_all_come_last(own, probe_epochs, due):
    job = job_of(own=own, probe_epochs=probe_epochs)
    assert [done for done in range(1, 43) if is_due(job, done)] == list(due)
    assert {done: images_due(job, done) for done in due} == due


@pytest.fixture
def job(small_shards) -> Any:
    """A model of seven classes that trains on something else; four of them are the probe's."""
    manifest = read_manifest(small_shards.path)
    settings = ProbeConfig(path=str(small_shards.path))
    probe = open_probe(settings, HEAD, cache_dir=None, patience=LAUNCH_PATIENCE)
    config = SimpleNamespace(
        data=DataConfig(path="/elsewhere", eval_split=None, workers_per_rank=0),
        eval=EvalConfig(probe=settings, batch_size_per_rank=8),
        augment=AugmentConfig(),
        model=SimpleNamespace(image_size=16),
    )
    plan = SimpleNamespace(eval_samples=0, eval_every_steps=1, steps_per_epoch=2, total_steps=4)
    return SimpleNamespace(config=config, plan=plan, probe=probe, manifest=manifest, world=World())


def logits_of(images: torch.Tensor) -> torch.Tensor:
    head = torch.randn(3, len(HEAD), generator=torch.Generator().manual_seed(2))
    # The mean alone tells the classes of these images apart, and class 0 of the head wins always.
    return (images.mean((2, 3)) @ head) + torch.tensor([100.0] + [0.0] * (len(HEAD) - 1))


def test_a_probe_is_measured_over_its_own_classes(job):
    dist.initialize(World(), CPU, timeout_seconds=30)
    try:
        got = measure(job, 2, logits_of, CPU)
        none = measure(job, 3, logits_of, CPU)
    finally:
        dist.shutdown()
    assert none.values == {}
    right = []
    settings = AugmentConfig()
    mean, std = (torch.tensor(v)[:, None, None] for v in (settings.mean, settings.std))
    with eval_batches(
        job.probe.manifest, "validation", job.config.data, job.config.eval, image_size=16,
        world=World(),
    ) as batches:  # fmt: skip
        for batch in batches:
            logits = logits_of((batch.images.float() / 255 - mean) / std)
            for row, label, valid in zip(logits, batch.labels, batch.valid, strict=True):
                known = {wnid: float(row[HEAD.index(wnid)]) for wnid in job.probe.manifest.classes}
                if valid:
                    best = max(known, key=lambda wnid: known[wnid])
                    right.append(best == job.probe.manifest.classes[int(label)])
    assert 0 < sum(right) < len(right)
    check_declared(got.values)
    assert got.values["eval/probe_images"] == len(right) == 20
    assert got.values["eval/probe_top1_fraction"] == sum(right) / len(right)
    assert got.values["eval/probe_top5_fraction"] == 1
    assert got.bad == []


def test_a_probe_with_unknown_classes_must_be_meant(small_shards):
    settings = ProbeConfig(path=str(small_shards.path))
    head = HEAD[:1] + HEAD[2:]
    with pytest.raises(DataError, match=r"eval\.probe: .*does not know 1 of its 4 .*n00000003;"):
        open_probe(settings, head, cache_dir=None, patience=LAUNCH_PATIENCE)
    meant = settings.model_copy(update={"leave_out_unknown_classes": True})
    probe = open_probe(meant, head, cache_dir=None, patience=LAUNCH_PATIENCE)
    assert probe.classes.left_out == ("n00000003",)
    with pytest.raises(DataError, match="no split 'test'"):
        open_probe(
            settings.model_copy(update={"split": "test"}),
            head,
            cache_dir=None,
            patience=LAUNCH_PATIENCE,
        )
