"""What ranks do in test_metrics_ranks.py."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pretrain.evaluate.classes import match_classes
from pretrain.evaluate.tally import Mapping, Tally, count_batches
from pretrain.metrics.activations import Activations, Looked
from pretrain.metrics.meter import Meter, peak_memory_gib
from pretrain.world import World

CLASSES = 7
SAMPLES = 29
BATCH = 4


@dataclass(frozen=True)
class Batch:
    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Result:
    loss_sum: Tensor
    images: int
    grad_norm: float
    hits: Tensor
    sample: "Sample"
    applied: Tensor = field(default_factory=lambda: torch.tensor(True))


@dataclass(frozen=True)
class Sample:
    update_squares: Tensor


def split_of(world: World) -> list[Batch]:
    """This rank's share of one split: every image once, padded to equal batches."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (SAMPLES, 3, 2, 2), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    per_step = BATCH * world.size
    batches = []
    for first in range(0, SAMPLES, per_step):
        ids = torch.arange(first + world.rank * BATCH, first + (world.rank + 1) * BATCH)
        valid = ids < SAMPLES
        ids = ids.clamp(max=SAMPLES - 1)
        batches.append(Batch(images[ids], labels[ids], ids, valid))
    return batches


def logits_of(images: Tensor) -> Tensor:
    head = torch.randn(12, CLASSES, generator=torch.Generator().manual_seed(4))
    return images.flatten(1) @ head


def prepare(images: Tensor) -> Tensor:
    return images.float() / 255


def accuracy(world: World) -> dict[str, Any]:
    ids = [f"n{position:08d}" for position in range(CLASSES)]
    classes = match_classes(ids, ids, what="set", leave_out_unknown=False, switch="")
    device = torch.device("cpu")
    mapping, tally = Mapping(classes, device), Tally(CLASSES, device)
    count_batches(logits_of, split_of(world), prepare, mapping, tally, device)
    total = tally.total()
    return {
        "overall": asdict(total.overall),
        "confusions": [asdict(pair) for pair in total.confusions],
        "mistakes": [asdict(mistake) for mistake in tally.mistakes(range(CLASSES)[::-1], 2)],
    }


def look(world: World) -> Looked | None:
    """Activations of four stages, larger on rank one."""
    stages = [torch.nn.Identity() for _ in range(4)]
    activations = Activations(stages)
    with activations.watched(True):
        for number, stage in enumerate(stages):
            stage(torch.full((2, 3), float(number - 4 * world.rank)))
    return activations.taken()


def means(world: World) -> dict[str, Any]:
    """A split evaluated; steps of uneven ranks metered, in one interval and cut by a resume."""
    whole, before, after = Meter(), Meter(), Meter()
    for number in range(4):
        images = 3 + world.rank + number
        sample = Sample(torch.tensor([[1.0] * 4, [2.0 + 28 * world.rank] * 4]).double())
        loss, hits = torch.tensor(float(images * (number + 1))), torch.tensor(float(images - 2))
        step = Result(loss, images, 2.0 + number, hits, sample)
        whole.add(step, bad_samples=world.rank)
        (before if number < 2 else after).add(step, bad_samples=world.rank)
        if number == 1:
            after.load_state(before.state(), world.rank)
    return {
        "accuracy": accuracy(world),
        "whole": asdict(whole.read(look(world))),
        "resumed": asdict(after.read(look(world))),
        "peak_gib": peak_memory_gib(torch.device("cpu")),
    }
