"""Writes down which samples every rank trains on; the soak puts this file into the runs' source.

``attempts/NNN/samples_rank_RRR.jsonl``: one line per step with the sample ids, their seeds and a
checksum of their pixels, in the order in which the rank consumed them.
"""

import json
import zlib
from collections.abc import Iterator

import torch

from pretrain import train
from pretrain.augment.masking import MaskedAugment
from pretrain.augment.pipeline import Augment
from pretrain.data.batch import BadSample, Batch
from pretrain.engine.engine import Values
from pretrain.job import Job
from pretrain.metrics.recorder import Recorder

_micro_batches = train.micro_batches


def traced_micro_batches(
    job: Job,
    augment: Augment | MaskedAugment,
    stream: Iterator[Batch],
    device: torch.device,
    step: int,
    bad_samples: list[BadSample],
    recorder: Recorder,
) -> Iterator[tuple[Values, Values]]:
    """`train.micro_batches`, noting what it takes from the stream."""
    noted = _noting(job, stream, step)
    return _micro_batches(job, augment, noted, device, step, bad_samples, recorder)


def _noting(job: Job, stream: Iterator[Batch], step: int) -> Iterator[Batch]:
    consumed: list[list[int]] = []
    for number, batch in enumerate(stream, 1):
        pixels = [zlib.crc32(image.numpy().tobytes()) for image in batch.images]
        rows = zip(batch.sample_ids.tolist(), batch.seeds.tolist(), pixels, strict=True)
        consumed += [list(row) for row in rows]
        if number == job.plan.accumulation:  # the engine asks for no more
            path = job.run.attempt_dir(job.attempt) / f"samples_rank_{job.world.rank:03d}.jsonl"
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "samples": consumed}) + "\n")
        yield batch


train.micro_batches = traced_micro_batches
