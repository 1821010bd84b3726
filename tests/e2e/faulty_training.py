"""``python -m pretrain`` with a fault: ``faulty_training.py KIND FIRST LAST ARGUMENTS…``.

``not_finite`` makes the images of global batches FIRST to LAST NaN on the last rank, whenever they
come; ``spike`` takes step FIRST to LAST with a thousand times its rate, once;
``raise`` fails before step FIRST to LAST.
"""

import os
import sys

import torch

from pretrain import recovery, train
from pretrain.__main__ import main
from pretrain.augment.pipeline import Augment
from pretrain.data.loader import train_order
from pretrain.errors import run_command

kind, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
del sys.argv[1:4]
faulty_steps = set(range(first, last + 1))
real_connect, real_rate = train.connect, train.rate


class Faulty(Augment):
    """Makes the images of certain samples NaN."""

    seeds: set[int]

    def __call__(self, images, labels, seeds, *, step, first_group):
        made, targets = super().__call__(images, labels, seeds, step=step, first_group=first_group)
        return (made * torch.nan if self.seeds & set(seeds.tolist()) else made), targets


def connect(job, *rest):
    parts = real_connect(job, *rest)
    if kind == "not_finite" and job.world.rank == job.world.size - 1:
        order = train_order(job.manifest, job.config.data, job.config.seed)
        size = job.plan.global_batch
        parts.objective.augment.__class__ = Faulty
        parts.objective.augment.seeds = {
            int(seed) for batch in faulty_steps for seed in order.batch(batch, size, 0, size).seeds
        }
    return parts


def rate(job, step):
    if kind == "raise" and step in faulty_steps:
        raise RuntimeError(f"step {step} fails")
    if kind == "spike" and step in faulty_steps:
        faulty_steps.discard(step)
        return 1000 * real_rate(job, step)
    return real_rate(job, step)


train.connect, train.rate = connect, rate
assert recovery.go_back is train.go_back
if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run_command(main)
