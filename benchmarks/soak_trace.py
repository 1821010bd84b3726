"""Writes down which samples every rank trains on; the soak puts this file into the runs' source.

``attempts/NNN/samples_rank_RRR.jsonl``: one line per step with the sample ids, their seeds and a
checksum of their pixels, in the order in which the rank consumed them.
"""

import json
import zlib
from typing import Any

from pretrain import train
from pretrain.job import Job
from pretrain.step_inputs import Ready, StepInputs


class TracedInputs(StepInputs):
    """`StepInputs`, noting what it hands out."""

    def __init__(self, job: Job, *rest: Any) -> None:
        super().__init__(job, *rest)
        plan = job.plan
        self._last_number = (job.world.rank + 1) * plan.accumulation - 1
        folder = job.run.attempt_dir(job.attempt)
        self._trace = folder / f"samples_rank_{job.world.rank:03d}.jsonl"
        self._consumed: list[list[int]] = []

    def take(self) -> Ready:
        """Hand out the next micro-batch; the last of a step completes its line."""
        ready = super().take()
        batch = ready.batch
        pixels = [zlib.crc32(image.numpy().tobytes()) for image in batch.images]
        rows = zip(batch.sample_ids.tolist(), batch.seeds.tolist(), pixels, strict=True)
        self._consumed += [list(row) for row in rows]
        if ready.number == self._last_number:
            with self._trace.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": ready.step, "samples": self._consumed}) + "\n")
            self._consumed = []
        return ready


train.StepInputs = TracedInputs
