"""Accuracy while a run trains: when it is measured, on its own split and on a probe."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.augment.pipeline import normalize
from pretrain.data.batch import BadSample, Batch
from pretrain.data.loader import Batches, eval_batches
from pretrain.data.manifest import Manifest
from pretrain.evaluate.classification import evaluate
from pretrain.evaluate.tally import Mapping
from pretrain.job import Job
from pretrain.metrics.forecast import Evaluated


@dataclass(frozen=True)
class Measured:
    """What came of an evaluation.

    Attributes:
        values: under their declared names, the same on every rank.
        bad: images that this rank could not use.
    """

    values: dict[str, float]
    bad: list[BadSample]


def evaluated(job: Job) -> list[Evaluated]:
    """Every split that is evaluated, with its period and its images."""
    found = (
        (_own_period(job), job.plan.eval_samples),
        (_probe_period(job), job.plan.probe_samples),
    )
    return [Evaluated(period, images) for period, images in found if period is not None]


def images_due(job: Job, done: int) -> int:
    """Images that are evaluated after ``done`` steps."""
    return sum(images for period, images in evaluated(job) if _falls(job, done, period))


def is_due(job: Job, done: int) -> bool:
    """Whether something is measured after ``done`` steps; all that there is, after the last."""
    return any(_falls(job, done, period) for period in (_own_period(job), _probe_period(job)))


def measure(
    job: Job, done: int, logits_of: Callable[[Tensor], Tensor], device: torch.device
) -> Measured:
    """Evaluate every split that is due after ``done`` steps; **every rank** calls it.

    Args:
        job: whose splits.
        done: steps taken.
        logits_of: float images [B, 3, H, W] on ``device`` to fp32 logits [B, Y] of the whole head.
        device: where to compute.

    Raises:
        DataError: too many images that cannot be read, or labels that the model has no class for.
    """
    measured = Measured({}, [])
    split = job.config.data.eval_split
    if split is not None and _falls(job, done, _own_period(job)):
        with _batches(job, job.manifest, split) as batches:
            own = evaluate(logits_of, _noting(batches, measured.bad), _prepare(job), device=device)
        measured.values.update(own.metrics())
    if job.probe is not None and _falls(job, done, _probe_period(job)):
        mapping = Mapping(job.probe.classes, device)
        with _batches(job, job.probe.manifest, job.probe.split) as batches:
            probed = evaluate(
                lambda images: mapping.logits(logits_of(images)),
                map(mapping.batch, _noting(batches, measured.bad)),
                _prepare(job),
                device=device,
            )
        measured.values.update(probed.metrics("eval/probe_"))
    return measured


def _own_period(job: Job) -> int | None:
    return job.plan.eval_every_steps if job.plan.eval_samples else None


def _probe_period(job: Job) -> int | None:
    settings = job.config.eval.probe
    return None if settings is None else settings.every_epochs * job.plan.steps_per_epoch


def _falls(job: Job, done: int, period: int | None) -> bool:
    return period is not None and (done % period == 0 or done == job.plan.total_steps)


def _batches(job: Job, manifest: Manifest, split: str) -> Batches:
    return eval_batches(
        manifest,
        split,
        job.config.data,
        job.config.eval,
        image_size=job.config.model.image_size,
        world=job.world,
    )


def _prepare(job: Job) -> Callable[[Tensor], Tensor]:
    settings = job.config.augment
    return lambda images: normalize(images, settings.mean, settings.std)


def _noting(batches: Iterable[Batch], bad: list[BadSample]) -> Iterator[Batch]:
    """Pass batches on, keeping what could not be read."""
    for batch in batches:
        bad += batch.bad
        yield batch
