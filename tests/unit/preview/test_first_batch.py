"""The picture that a run leaves, from the tensors that it trains on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pretrain.augment.__main__ import main
from pretrain.augment.build import augment_of
from pretrain.config.load import load_run
from pretrain.data.loader import train_batches
from pretrain.job import Job
from pretrain.plan.derive import make_plan
from pretrain.plan.resources import Resources
from pretrain.preflight import require_manifest
from pretrain.preview import first_batch
from pretrain.preview.compose import Given
from pretrain.preview.first_batch import draw_first_batch
from pretrain.run_directory import RunDirectory
from pretrain.world import World


class Events:
    """What a recorder is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, **fields: object) -> None:
        self.told.append((kind, fields))


@pytest.fixture
def job(painted, tmp_path) -> Job:
    config = load_run(str(painted), [f"runs_dir={tmp_path}"])
    manifest = require_manifest(config)
    plan = make_plan(config, manifest, Resources("cpu", 1, 1), free_disk_bytes=2**40)
    run = RunDirectory(tmp_path / "painted")
    run.create(config, plan.to_json())
    return Job(run, config, plan, manifest, World(), attempt=1)


@pytest.fixture
def draw(job) -> Callable[[Events], tuple[Given, Given]]:
    """Draws the first batch without a random number; returns what was given, before and after."""

    def drawn(events: Any) -> tuple[Given, Given]:
        config, plan = job.config, job.plan
        augment = augment_of(config)
        with train_batches(
            job.manifest, config.data, config.augment, seed=config.seed, image_size=32,
            global_batch=plan.global_batch, micro_batch=plan.micro_batch,
            accumulation=plan.accumulation, world=job.world, first_step=0, last_step=1,
        ) as batches:  # fmt: skip
            batch = next(batches)
        given = Given(*augment(batch.images, batch.labels, batch.seeds, step=0, first_group=0))
        before = Given(given.inputs.clone(), given.targets.clone())
        state = torch.get_rng_state()
        draw_first_batch(job, events, augment, batch, given)
        assert torch.equal(torch.get_rng_state(), state)
        return before, given

    return drawn


def test_it_is_what_the_preview_shows_and_it_stays(job, draw, tmp_path):
    events, path = Events(), job.run.augmentation_path
    draw(events)
    assert events.told == [("augmentation_drawn", {"path": "augmentation.png"})]
    # Through worker processes here, and without there.
    for which in (("--run", str(job.run.path)), ("--config", str(job.run.config_path))):
        assert main(["preview", *which, "--out", str(tmp_path / "grid.png")]) == 0
        assert (tmp_path / "grid.png").read_bytes() == path.read_bytes()
    path.write_bytes(b"of an earlier attempt")
    draw(events)
    assert path.read_bytes() == b"of an earlier attempt"
    assert len(events.told) == 1


def test_looking_changes_nothing(draw):
    before, after = draw(Events())
    assert torch.equal(before.inputs, after.inputs)
    assert torch.equal(before.targets, after.targets)


def test_a_fault_is_an_event(job, draw, monkeypatch):
    events = Events()
    monkeypatch.setattr(first_batch, "png_of", lambda _: 1 / 0)
    draw(events)
    ((kind, fields),) = events.told
    assert kind == "augmentation_not_drawn"
    assert "ZeroDivisionError" in fields["reason"]
