"""Makes a micro-batch again as training makes it, on the CPU and without a model."""

from contextlib import closing

from pretrain.augment.build import augment_of
from pretrain.data.loader import train_batches
from pretrain.preview.compose import Given, Where, first_group, sheet_of
from pretrain.preview.request import Request
from pretrain.preview.sheet import Sheet
from pretrain.world import World


def sheet_of_request(request: Request, *, images: int, crops: bool) -> Sheet:
    """Read, crop, augment and mix one micro-batch, and compose its picture.

    Raises:
        DataError: its images cannot be read.
        ConfigError: the augmentation cannot be built.
    """
    config = request.config
    # The rank of a world in which every rank has one micro-batch: this one.
    world = World(rank=request.number, size=request.micro_batches)
    batches = train_batches(
        request.manifest,
        config.data.model_copy(update={"workers_per_rank": 0}),
        config.augment,
        seed=config.seed,
        image_size=config.model.image_size,
        global_batch=config.batch.global_size,
        micro_batch=request.micro_batch,
        accumulation=1,
        world=world,
        first_step=request.step,
        last_step=request.step + 1,
        skips=request.skips,
    )
    with closing(batches):
        batch = next(batches)
    augment = augment_of(config)
    made = augment(
        batch.images,
        batch.labels,
        batch.seeds,
        step=request.step,
        first_group=first_group(config.augment, request.number, request.micro_batch),
    )
    where = Where(request.step, request.number, request.micro_batches)
    return sheet_of(
        config, request.manifest, augment, batch, Given(*made), where, images=images, crops=crops
    )
