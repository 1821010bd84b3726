"""What a step is given: this rank's augmented micro-batches, and a learning rate."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Ready:
    """A micro-batch of this rank that was begun with; a GPU may not be done with it.

    Attributes:
        step: 0-based index of its step.
        number: in the step's global batch, from 0.
        batch: the loader's.
        given: what the model takes, and what its outputs are compared with.
    """

    step: int
    number: int
    batch: Batch
    given: Given


class StepInputs:
    """Makes this rank's augmented micro-batches, the next one while the present one is computed.

    It looks ahead by one, over the ends of steps too; on a GPU what it makes is copied and
    augmented on a stream of its own. What a step is given, and in which order, is the same without.

    Args:
        job: whose plan says how many there are of a step.
        augment: from a batch to what the model takes and what its outputs are compared with.
        stream: the loader's batches, from the first step on.
        device: where they are to be.
        first_step: 0-based.
        bad_samples: what this rank could not use is added here, in the step that lacks it.
        recorder: told of the picture of the run's first micro-batch, which rank zero draws.
        around: gives what surrounds the making of a micro-batch, which it is told is "augment".
    """

    def __init__(
        self,
        job: Job,
        augment: Augment | MaskedAugment,
        stream: Iterator[Batch],
        device: torch.device,
        first_step: int,
        bad_samples: list[BadSample],
        recorder: Recorder,
        around: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._job = job
        self._augment = augment
        self._stream = stream
        self._device = device
        self._bad_samples = bad_samples
        self._recorder = recorder
        self._around = around
        self._looks_ahead = job.config.engine.overlap_augmentation
        on_gpu = device.type == "cuda" and self._looks_ahead
        self._beside = torch.cuda.Stream(device) if on_gpu else None
        first = job.world.rank * job.plan.accumulation
        self._numbers = range(first, first + job.plan.accumulation)
        steps = range(first_step, job.plan.total_steps)
        self._to_come = ((step, number) for step in steps for number in self._numbers)
        self._ready: Ready | Exception | None = None

    def of_step(self, step: int) -> Iterator[tuple[Values, Values]]:
        """Yield the micro-batches of a step, each when it is asked for; steps come in order."""
        for number in self._numbers:
            ready = self.take()
            self._bad_samples += ready.batch.bad
            if step == 0 and number == 0:
                draw_first_batch(self._job, self._recorder, self._augment, ready.batch, ready.given)
            # Drop path draws from torch: the same at any resume, different in every micro-batch.
            torch.manual_seed(_stream_seed(self._job.config.seed, step, number))
            yield ready.given

    def prepare(self) -> None:
        """Begin with the next micro-batch, if there is one and it is wanted ahead of its turn.

        What goes wrong is raised when its turn has come: the step before is not to blame.
        """
        if not self._looks_ahead or self._ready is not None:
            return
        position = next(self._to_come, None)
        if position is None:
            return
        try:
            self._ready = self._make(*position)
        except Exception as error:  # noqa: BLE001 - raised in its turn
            self._ready = error

    def take(self) -> Ready:
        """Return the next micro-batch, which what the device is given from here on waits for."""
        ready, self._ready = self._ready, None
        if ready is None:
            ready = self._make(*next(self._to_come))
        if isinstance(ready, Exception):
            raise ready
        if self._beside is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._beside)
            for values in ready.given:
                for tensor in values if isinstance(values, tuple) else (values,):
                    tensor.record_stream(current)  # its memory is not the other stream's before
        return ready

    def _make(self, step: int, number: int) -> Ready:
        batch, plan = next(self._stream), self._job.plan
        beside = nullcontext() if self._beside is None else torch.cuda.stream(self._beside)
        with self._around("augment"), beside:
            made = self._augment(
                batch.images.to(self._device, non_blocking=True),
                batch.labels.to(self._device, non_blocking=True),
                batch.seeds,
                step=step,
                first_group=first_group(self._job.config.augment, number, plan.micro_batch),
            )
        return Ready(step, number, batch, Given(*made))


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
