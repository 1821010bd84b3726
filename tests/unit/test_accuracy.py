"""When a run is measured, on which splits, and that a probe counts what its classes say."""

import json
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import dist
from pretrain.accuracy import images_due, is_due, keep_by_class, measure
from pretrain.config.schema import AugmentConfig, DataConfig, EmaConfig, EvalConfig, ProbeConfig
from pretrain.data.loader import Batches, eval_batches
from pretrain.data.manifest import read_manifest
from pretrain.data.remote import LAUNCH_PATIENCE
from pretrain.data.shards import BadSampleError
from pretrain.errors import DataError
from pretrain.evaluate.classes import match_classes
from pretrain.evaluate.probe import open_probe
from pretrain.metrics.names import check_declared
from pretrain.run_directory import RunDirectory
from pretrain.world import World

CPU = torch.device("cpu")
HEAD = ("n00000009", "n00000003", "n00000002", "n00000001", "n00000000", "n00000007", "n00000008")

SET = ("n00000000", "n00000001", "n00000002", "n00000003")


def job_of(*, own: int | None = 10, probe_epochs: int | None = 1, **fields: Any) -> Any:
    settings = None if probe_epochs is None else SimpleNamespace(every_epochs=probe_epochs)
    config = SimpleNamespace(
        eval=SimpleNamespace(probe=settings),
        data=SimpleNamespace(eval_split="validation"),
        ema=EmaConfig(),
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
    job.config.ema = EmaConfig(decay=0.9)
    assert {done: images_due(job, done) for done in due} == {at: 2 * n for at, n in due.items()}


@pytest.fixture
def job(small_shards, tmp_path) -> Any:
    """A model of seven classes that trains on something else; four of them are the probe's."""
    manifest = read_manifest(small_shards.path)
    settings = ProbeConfig(path=str(small_shards.path))
    probe = open_probe(settings, HEAD, cache_dir=None, patience=LAUNCH_PATIENCE)
    config = SimpleNamespace(
        data=DataConfig(path="/elsewhere", eval_split=None, workers_per_rank=0),
        eval=EvalConfig(probe=settings, batch_size_per_rank=8),
        augment=AugmentConfig(),
        model=SimpleNamespace(image_size=16),
        ema=EmaConfig(),
    )
    plan = SimpleNamespace(eval_samples=0, eval_every_steps=3, steps_per_epoch=2, total_steps=12)
    run = RunDirectory(tmp_path)
    return SimpleNamespace(
        config=config, plan=plan, probe=probe, manifest=manifest, world=World(), run=run
    )


@pytest.fixture(autouse=True, scope="module")
def alone():
    dist.initialize(World(), CPU, timeout_seconds=30)
    yield
    dist.shutdown()


def logits_of(images: torch.Tensor) -> torch.Tensor:
    head = torch.randn(3, len(HEAD), generator=torch.Generator().manual_seed(2))
    # The mean alone tells the classes of these images apart, and class 0 of the head wins always.
    return (images.mean((2, 3)) @ head) + torch.tensor([100.0] + [0.0] * (len(HEAD) - 1))


def taken_for_of(job, logits_of, classes) -> list[tuple[int, str, str]]:
    """Sample id, class and answer of every image of the set, one at a time, by hand."""
    settings = AugmentConfig()
    mean, std = (torch.tensor(v)[:, None, None] for v in (settings.mean, settings.std))
    found = []
    with eval_batches(
        job.probe.manifest, "validation", job.config.data, job.config.eval, image_size=16,
        world=World(),
    ) as batches:  # fmt: skip
        for batch in batches:
            logits = logits_of((batch.images.float() / 255 - mean) / std)
            for row, label, sample in zip(logits, batch.labels, batch.sample_ids, strict=True):
                known = {wnid: float(row[classes.index(wnid)]) for wnid in SET}
                if sample >= 0:
                    best = max(known, key=lambda wnid: known[wnid])
                    found.append((int(sample), SET[int(label)], best))
    return found


def test_a_probe_is_measured_over_its_own_classes(job):
    got = measure(job, 2, logits_of, lambda _: nullcontext(), CPU)
    assert measure(job, 3, logits_of, lambda _: nullcontext(), CPU).values == {}
    right = [wnid == best for _, wnid, best in taken_for_of(job, logits_of, HEAD)]
    assert 0 < sum(right) < len(right)
    check_declared(got.values)
    assert got.values["eval/probe_images"] == len(right) == 20
    assert got.values["eval/probe_top1_fraction"] == sum(right) / len(right)
    assert got.values["eval/probe_top5_fraction"] == 1
    assert got.bad == []
    assert got.by_class is not None
    assert got.by_class.document["of"] == "probe"


@pytest.fixture
def averaging(job, small_shards) -> Any:
    """The same set as the run's own split and as its probe, of a run that keeps an average."""
    job.config.ema = EmaConfig(decay=0.9)
    job.config.data = DataConfig(path=str(small_shards.path), workers_per_rank=0)
    job.plan.eval_samples = 20
    job.probe = replace(job.probe, classes=match_classes(
        SET, SET, what="", leave_out_unknown=False, switch="")
    )  # fmt: skip
    return job


class Network:
    """Two heads over the mean colour, one for each of the weights."""

    def __init__(self):
        generator = torch.Generator().manual_seed(6)
        self.heads = {which: torch.randn(3, 4, generator=generator) for which in ("raw", "ema")}
        self.which = "raw"

    @contextmanager
    def computing_with(self, which):
        self.which = which
        yield
        self.which = "raw"

    def logits(self, images, which=None):
        return images.mean((2, 3)) @ self.heads[which or self.which]


def test_a_run_with_an_average_measures_both_on_every_set(averaging):
    network = Network()
    got = measure(averaging, 6, network.logits, network.computing_with, CPU).values
    check_declared(got)
    shares = {}
    for which, own, probe in (
        ("raw", "eval/", "eval/probe_"),
        ("ema", "eval/ema_", "eval/probe_ema_"),
    ):
        answers = taken_for_of(averaging, partial(network.logits, which=which), SET)
        shares[which] = sum(wnid == best for _, wnid, best in answers) / 20
        for prefix in (own, probe):
            assert got[f"{prefix}images"] == 20
            assert got[f"{prefix}top1_fraction"] == shares[which]
    assert shares["raw"] != shares["ema"]
    assert len(got) == 16


@pytest.mark.parametrize("given", ["raw", "ema"])
def test_the_worst_classes_and_what_they_are_taken_for_are_kept(averaging, given):
    averaging.config.ema = EmaConfig(decay=0.9, result=given)
    run, network = averaging.run, Network()
    run.examples_dir.mkdir()
    (run.examples_dir / "step_00000001_00.jpg").write_text("of the evaluation before")
    measured = measure(averaging, 6, network.logits, network.computing_with, CPU)
    assert keep_by_class(averaging, measured) is None
    kept = json.loads(run.by_class_path.read_text())

    answers = taken_for_of(averaging, partial(network.logits, which=given), SET)
    wrong = Counter((wnid, best) for _, wnid, best in answers if wnid != best)
    right = Counter(wnid for _, wnid, best in answers if wnid == best)
    assert (kept["step"], kept["split"], kept["edition"]) == (6, "validation", "small")
    assert (kept["of"], kept["weights"], kept["classes"], kept["images"]) == ("eval", given, 4, 20)
    assert kept["top1_fraction"] == sum(right.values()) / 20
    assert {one["id"] for one in kept["worst"]} == {wnid for wnid in SET if right[wnid] < 5}
    shares = [one["top1_fraction"] for one in kept["worst"]]
    assert shares == sorted(right[one["id"]] / 5 for one in kept["worst"])
    for one in kept["worst"]:
        pairs = {pair["id"]: pair["images"] for pair in one["taken_for"]}
        assert pairs == {
            best: images for (wnid, best), images in wrong.items() if wnid == one["id"]
        }
        first = [best for _, wnid, best in answers if best != wnid == one["id"]][:4]
        assert [example["taken_for"]["id"] for example in one["examples"]] == first
    assert (
        Counter(
            {
                (pair["label"]["id"], pair["taken_for"]["id"]): pair["images"]
                for pair in kept["confused"]
            }
        )
        == wrong
    )
    assert [pair["of_images"] for pair in kept["confused"]] == [5] * len(wrong)

    files = [example["file"] for one in kept["worst"] for example in one["examples"]]
    assert sorted(files) == sorted(f"examples/{path.name}" for path in run.examples_dir.iterdir())
    means = {}
    for one in kept["worst"]:
        for example in one["examples"]:
            with Image.open(run.path / example["file"]) as picture:
                assert picture.format == "JPEG"
                assert 40 <= max(picture.size) <= 90
                means[one["id"]] = np.asarray(picture).mean()
    # By its brightness each class of the set can be told: the pictures are of the right images.
    for wnid, mean in means.items():
        assert abs(mean - (60 + 45 * int(wnid[1:]))) < 15


def test_pictures_that_cannot_be_had_cost_nothing_else(averaging, monkeypatch):
    network = Network()
    unreadable = BadSampleError("cannot be read: Input/output error")
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "at_hand", lambda *_: (_ for _ in ()).throw(unreadable))
        measured = measure(averaging, 6, network.logits, network.computing_with, CPU)
    assert keep_by_class(averaging, measured) == str(unreadable)
    kept = json.loads(averaging.run.by_class_path.read_text())
    assert kept["worst"]
    assert all(one["examples"] == [] for one in kept["worst"])

    averaging.run.examples_dir.rmdir()
    averaging.run.examples_dir.write_text("in the way")
    assert "examples: cannot be written: File exists" in (keep_by_class(averaging, measured) or "")


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
