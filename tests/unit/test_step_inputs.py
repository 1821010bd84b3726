"""What steps are given, one micro-batch ahead or not: order, seeds, bad samples, errors, ends."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.config.schema import AugmentConfig
from pretrain.data.batch import BadSample, Batch
from pretrain.errors import DataError
from pretrain.step_inputs import StepInputs
from pretrain.world import World

ACCUMULATION, STEPS, FIRST_STEP = 2, 4, 1
BATCHES = (STEPS - FIRST_STEP) * ACCUMULATION
CPU = torch.device("cpu")


class Loader(Iterator[Batch]):
    """Batches whose labels are their number; the one before ``damaged`` is its last."""

    def __init__(self, damaged: int = BATCHES) -> None:
        self.drawn = 0
        self._damaged = damaged

    def __next__(self) -> Batch:
        if self.drawn == BATCHES:
            raise StopIteration
        if self.drawn == self._damaged:
            raise DataError("too many bad samples")
        number = torch.tensor([self.drawn])
        self.drawn += 1
        bad = (BadSample("a.tar", str(self.drawn - 1), "damaged"),)
        return Batch(
            torch.zeros(1, 3, 2, 2, dtype=torch.uint8), number, number, number, number, bad
        )


def augment(images: Any, labels: Any, seeds: Any, *, step: int, first_group: int) -> Any:
    """Says what it was asked for; draws, as no augmentation of ours does."""
    torch.rand(3)
    return torch.tensor([[step, first_group]], device=images.device), labels


def inputs_of(loader: Loader, bad: list[BadSample], *, ahead: bool) -> StepInputs:
    config = SimpleNamespace(
        seed=7,
        augment=AugmentConfig(mix_group=2),
        engine=SimpleNamespace(overlap_augmentation=ahead),
    )
    plan = SimpleNamespace(accumulation=ACCUMULATION, micro_batch=2, total_steps=STEPS)
    job: Any = SimpleNamespace(config=config, plan=plan, world=World(rank=1, size=2))
    recorder: Any = None
    return StepInputs(job, augment, loader, CPU, FIRST_STEP, bad, recorder)  # pyright: ignore


def taken(inputs: StepInputs, step: int) -> list[Any]:
    """What a step's passes would see: inputs, targets, and the next draw of drop path."""
    seen = []
    for images, targets in inputs.of_step(step):
        seen.append((images.tolist(), targets.tolist(), float(torch.rand(1))))
        inputs.prepare()
        inputs.prepare()  # once is enough
    return seen


def test_ahead_or_not_steps_see_the_same():
    seen = {}
    for ahead in (True, False):
        inputs = inputs_of(Loader(), [], ahead=ahead)
        seen[ahead] = [taken(inputs, step) for step in range(FIRST_STEP, STEPS)]
    assert seen[True] == seen[False]
    draws = {draw for step in seen[True] for *_, draw in step}
    assert len(draws) == BATCHES
    asked = [tuple(images[0]) for step in seen[True] for images, *_ in step]
    assert asked == [(step, number) for step in range(FIRST_STEP, STEPS) for number in (2, 3)]
    assert [targets for step in seen[True] for _, targets, _ in step] == [
        [number] for number in range(BATCHES)
    ]


@pytest.mark.parametrize("ahead", [True, False])
def test_it_looks_ahead_by_one_over_the_ends_of_steps(ahead):
    loader = Loader()
    inputs = inputs_of(loader, [], ahead=ahead)
    drawn = []
    for step in range(FIRST_STEP, STEPS):
        taken(inputs, step)
        drawn.append(loader.drawn)
    assert drawn == ([3, 5, 6] if ahead else [2, 4, 6])


@pytest.mark.parametrize("ahead", [True, False])
def test_a_bad_sample_counts_in_the_step_that_lacks_it(ahead):
    bad: list[BadSample] = []
    inputs = inputs_of(Loader(), bad, ahead=ahead)
    for step in range(FIRST_STEP, STEPS):
        taken(inputs, step)
        assert [sample.key for sample in bad] == [
            str(number) for number in range((step - FIRST_STEP + 1) * ACCUMULATION)
        ]


@pytest.mark.parametrize("ahead", [True, False])
def test_what_is_wrong_ahead_ends_the_step_that_needs_it(ahead):
    inputs = inputs_of(Loader(damaged=ACCUMULATION), [], ahead=ahead)
    assert len(taken(inputs, FIRST_STEP)) == ACCUMULATION
    with pytest.raises(DataError, match="too many bad samples"):
        taken(inputs, FIRST_STEP + 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_beside_it_and_gets_the_same():
    """A long computation is under way when the next is made; memory is used again meanwhile."""
    device, seen = torch.device("cuda", 0), {}
    for ahead in (True, False):
        loader = Loader()
        inputs = inputs_of(loader, [], ahead=ahead)
        inputs._device = device
        inputs._beside = torch.cuda.Stream(device) if ahead else None
        found = []
        for step in range(FIRST_STEP, STEPS):
            for _, targets in inputs.of_step(step):
                torch.cuda._sleep(10_000_000)
                found.append(targets + 0)
                inputs.prepare()
        seen[ahead] = torch.cat(found).tolist()
    assert seen[True] == seen[False] == list(range(BATCHES))
