"""Writes down which samples every rank trains on; the soak puts this file into the runs' source.

``attempts/NNN/samples_rank_RRR.jsonl``: one line per step with the sample ids, their seeds and a
checksum of their pixels, in the order in which the rank consumed them.
"""

import json
import zlib
from collections.abc import Iterator
from typing import Any

import torch

from pretrain import train
from pretrain.data.batch import Batch
from pretrain.engine.engine import Values
from pretrain.job import Job

_micro_batches = train.micro_batches


def traced_micro_batches(
    job: Job, augment: Any, stream: Iterator[Batch], device: torch.device, step: int, *rest: Any
) -> Iterator[tuple[Values, Values]]:
    """`train.micro_batches`, noting what it takes from the stream."""
    return _micro_batches(job, augment, _noting(job, stream, step), device, step, *rest)


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
