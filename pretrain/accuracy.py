"""Accuracy while a run trains: when it is measured, on its own split and on a probe."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.augment.pipeline import normalize
from pretrain.data.batch import BadSample
from pretrain.data.loader import Batches, eval_batches
from pretrain.data.manifest import Manifest
from pretrain.evaluate.by_class import (
    EXAMPLES_KEPT,
    ByClass,
    by_class_document,
    take_pictures,
    worst_classes,
    write_by_class,
)
from pretrain.evaluate.classes import ClassMap, match_classes
from pretrain.evaluate.measure import noting
from pretrain.evaluate.tally import Mapping, Tallied, Tally, count_batches
from pretrain.job import Job
from pretrain.metrics.forecast import Evaluated
from pretrain.metrics.names import Of, Weights, evaluation_prefix


@dataclass
class Measured:
    """What came of an evaluation.

    Attributes:
        values: under their declared names, the same on every rank.
        bad: images that this rank could not use.
        by_class: of the weights that the run gives, on its own split, else on its probe; on rank
            zero, and None where that was not due.
    """

    values: dict[str, float]
    bad: list[BadSample]
    by_class: ByClass | None = None


class _Set(NamedTuple):
    of: Of
    manifest: Manifest
    split: str
    classes: ClassMap


def evaluated(job: Job) -> list[Evaluated]:
    """Every split that is evaluated: its period, and its images, times the weights measured."""
    found = (
        (_own_period(job), job.plan.eval_samples),
        (_probe_period(job), job.plan.probe_samples),
    )
    times = len(job.config.ema.evaluated)
    return [Evaluated(period, images * times) for period, images in found if period is not None]


def images_due(job: Job, done: int) -> int:
    """Images that are evaluated after ``done`` steps, times the weights they are shown to."""
    return sum(images for period, images in evaluated(job) if _falls(job, done, period))


def is_due(job: Job, done: int) -> bool:
    """Whether something is measured after ``done`` steps; all that there is, after the last."""
    return any(_falls(job, done, period) for period in (_own_period(job), _probe_period(job)))


def measure(
    job: Job,
    done: int,
    logits_of: Callable[[Tensor], Tensor],
    computing_with: Callable[[Weights], AbstractContextManager[None]],
    device: torch.device,
) -> Measured:
    """Evaluate all weights on every split that is due after ``done`` steps; **every rank**.

    Each of the weights takes a pass over the images of its own: under ZeRO both cannot be had at a
    time, so a run that keeps an average evaluates for twice as long.

    Args:
        job: whose splits.
        done: steps taken.
        logits_of: float images [B, 3, H, W] on ``device`` to fp32 logits [B, Y] of the whole head.
        computing_with: lets it compute with these weights inside a ``with`` block.
        device: where to compute.

    Raises:
        DataError: too many images that cannot be read, or labels that the model has no class for.
    """
    measured = Measured({}, [])
    for weights in job.config.ema.evaluated:
        with computing_with(weights):
            for test in _due(job, done):
                mapping = Mapping(test.classes, device)
                tally = Tally(mapping.num_classes, device)
                with _batches(job, test) as batches:
                    counted = noting(batches, measured.bad)
                    count_batches(logits_of, counted, _prepare(job), mapping, tally, device)
                    tallied = tally.total()
                    if weights == job.config.ema.given and test.of == _judged_by(job):
                        measured.by_class = _by_class(job, done, test, batches, tally, tallied)
                prefix = evaluation_prefix(test.of, weights)
                measured.values.update(tallied.overall.metrics(prefix))
    measured.bad[:] = dict.fromkeys(measured.bad)  # every pass meets the same
    return measured


def keep_by_class(job: Job, measured: Measured) -> str | None:
    """Keep by_class.json and its pictures, where there are new ones; return what went wrong.

    Any rank; only rank zero has something to keep. Training does not depend on it.
    """
    found = measured.by_class
    if found is None:
        return None
    try:
        write_by_class(job.run, found)
    except OSError as error:
        return f"{error.filename or job.run.by_class_path}: cannot be written: {error.strerror}"
    return found.pictures.fault


def _by_class(
    job: Job, done: int, test: _Set, batches: Batches, tally: Tally, tallied: Tallied
) -> ByClass | None:
    """Find the worst classes and pictures of their images; every rank, the result on rank zero."""
    worst = worst_classes(tallied, test.classes.classes)
    mistakes = tally.mistakes(worst, EXAMPLES_KEPT)
    if job.world.rank != 0:
        return None
    pictures = take_pictures(mistakes, batches.at_hand, step=done)
    document = by_class_document(
        test.manifest,
        test.split,
        test.classes,
        tallied,
        pictures,
        names=dict(zip(job.manifest.classes, job.manifest.class_names, strict=True)),
        step=done,
        weights=job.config.ema.given,
        of=test.of,
    )
    return ByClass(document, pictures)


def _due(job: Job, done: int) -> Iterator[_Set]:
    """The sets that are due after ``done`` steps."""
    own, split = job.manifest, job.config.data.eval_split
    if split is not None and _falls(job, done, _own_period(job)):
        classes = match_classes(
            own.classes, own.classes, what=own.location, leave_out_unknown=False, switch=""
        )
        yield _Set("eval", own, split, classes)
    if job.probe is not None and _falls(job, done, _probe_period(job)):
        yield _Set("probe", job.probe.manifest, job.probe.split, job.probe.classes)


def _judged_by(job: Job) -> Of:
    """The images whose accuracy is the run's."""
    return "probe" if _own_period(job) is None else "eval"


def _own_period(job: Job) -> int | None:
    return job.plan.eval_every_steps if job.plan.eval_samples else None


def _probe_period(job: Job) -> int | None:
    settings = job.config.eval.probe
    return None if settings is None else settings.every_epochs * job.plan.steps_per_epoch


def _falls(job: Job, done: int, period: int | None) -> bool:
    return period is not None and (done % period == 0 or done == job.plan.total_steps)


def _batches(job: Job, test: _Set) -> Batches:
    return eval_batches(
        test.manifest,
        test.split,
        job.config.data,
        job.config.eval,
        image_size=job.config.model.image_size,
        world=job.world,
    )


def _prepare(job: Job) -> Callable[[Tensor], Tensor]:
    settings = job.config.augment
    return lambda images: normalize(images, settings.mean, settings.std)
