"""The picture that every run leaves of what it trains on: its first micro-batch."""

from pretrain.augment.masking import MaskedAugment
from pretrain.augment.pipeline import Augment
from pretrain.data.batch import Batch
from pretrain.files import replace_bytes
from pretrain.job import Job
from pretrain.metrics.recorder import Recorder
from pretrain.preview.compose import Given, Where, sheet_of
from pretrain.preview.drawing import png_of
from pretrain.preview.sheet import IMAGES


def draw_first_batch(
    job: Job, recorder: Recorder, augment: Augment | MaskedAugment, batch: Batch, given: Given
) -> None:
    """Write ``augmentation.png`` of the run's first micro-batch. Rank zero, in the first step.

    Waits for the device and draws at once. A picture that is there stays: an attempt that begins
    at the first step again is given the same. Draws no random numbers, changes no tensor, and
    raises nothing: a fault is an event.

    Args:
        job: of this rank.
        recorder: for the event.
        augment: what made ``given`` of ``batch``.
        batch: the loader's.
        given: what the engine is about to train on.
    """
    path = job.run.augmentation_path
    if path.exists():
        return
    where = Where(0, 0, job.plan.global_batch // job.plan.micro_batch)
    try:
        sheet = sheet_of(job.config, job.manifest, augment, batch, given, where, images=IMAGES)
        replace_bytes(path, png_of(sheet))
    except Exception as error:  # noqa: BLE001 - no picture is worth a run, and the others wait
        recorder.event("augmentation_not_drawn", reason=f"{type(error).__name__}: {error}")
        return
    recorder.event("augmentation_drawn", path=path.name)
