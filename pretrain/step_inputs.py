"""What a step is given: this rank's augmented micro-batches, and a learning rate."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch

from pretrain.augment.masking import MaskedAugment
from pretrain.augment.pipeline import Augment
from pretrain.data.batch import BadSample, Batch
from pretrain.data.loader import Batches, train_batches
from pretrain.engine.engine import Values
from pretrain.engine.schedule import learning_rate
from pretrain.job import Job
from pretrain.metrics.recorder import Recorder
from pretrain.preview.compose import Given, first_group
from pretrain.preview.first_batch import draw_first_batch
from pretrain.recovery import read_skips


def training_batches(job: Job, first_step: int) -> Batches:
    """Return the loader of every micro-batch that this rank has yet to train on."""
    return train_batches(
        job.manifest,
        job.config.data,
        job.config.augment,
        seed=job.config.seed,
        image_size=job.config.model.image_size,
        global_batch=job.plan.global_batch,
        micro_batch=job.plan.micro_batch,
        accumulation=job.plan.accumulation,
        world=job.world,
        first_step=first_step,
        last_step=job.plan.total_steps,
        skips=read_skips(job.run),
    )


def micro_batches(
    job: Job,
    augment: Augment | MaskedAugment,
    stream: Iterator[Batch],
    device: torch.device,
    step: int,
    bad_samples: list[BadSample],
    recorder: Recorder,
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Iterator[tuple[Values, Values]]:
    """Yield this rank's augmented micro-batches of a step, each made when it is asked for.

    Args:
        job: whose plan says how many there are.
        augment: from a batch to what the model takes and what its outputs are compared with.
        stream: the loader's batches, from this step on.
        device: where they are to be.
        step: 0-based index of the step.
        bad_samples: what this rank could not use is added here.
        recorder: told of the picture of the run's first micro-batch, which rank zero draws.
        around: gives what surrounds the making of a micro-batch, which it is told is "augment".
    """
    plan, rank = job.plan, job.world.rank
    for number in range(rank * plan.accumulation, (rank + 1) * plan.accumulation):
        batch = next(stream)
        bad_samples += batch.bad
        # Drop path draws from torch: the same at any resume, different in every micro-batch.
        torch.manual_seed(_stream_seed(job.config.seed, step, number))
        with around("augment"):
            made = augment(
                batch.images.to(device, non_blocking=True),
                batch.labels.to(device, non_blocking=True),
                batch.seeds,
                step=step,
                first_group=first_group(job.config.augment, number, plan.micro_batch),
            )
        if step == 0 and number == 0:
            draw_first_batch(job, recorder, augment, batch, Given(*made))
        yield made


def rate(job: Job, step: int) -> float:
    """Return the learning rate of a step."""
    plan, schedule = job.plan, job.config.schedule
    return learning_rate(
        step,
        total_steps=plan.total_steps,
        warmup_steps=plan.warmup_steps,
        peak=plan.peak_lr,
        start=plan.warmup_lr,
        floor=plan.min_lr,
        kind=schedule.kind,
        decay_spans_warmup=schedule.decay_spans_warmup,
        milestones=plan.milestone_steps,
        milestone_factor=schedule.milestone_factor,
    )


def _stream_seed(*numbers: int) -> int:
    """Hash integers into a seed; neighbours must not give related streams."""
    text = ",".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
