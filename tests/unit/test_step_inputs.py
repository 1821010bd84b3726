"""What steps are given, one micro-batch ahead or not: order, seeds, bad samples, errors, ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.config.schema import AugmentConfig
from pretrain.data.batch import BadSample, Batch
from pretrain.errors import DataError
from pretrain.metrics.clock import Clock
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


def inputs_of(loader: Iterator[Batch], bad: list[BadSample], *, ahead: bool) -> StepInputs:
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


def test_waiting_for_what_is_ahead_counts_as_waiting_for_data():
    """A batch takes 3 seconds to come and 5 to be trained on."""
    now = 0.0
    loader = Loader()

    def slow() -> Iterator[Batch]:
        nonlocal now
        for batch in loader:
            now += 3.0
            yield batch

    forecast: Any = SimpleNamespace(add_step=lambda seconds: None)
    clock = Clock(global_batch=1, forecast=forecast, now=lambda: now)
    inputs = inputs_of(clock.waiting(slow()), [], ahead=True)
    for step in range(FIRST_STEP, STEPS):
        with clock.phase("step"):
            for _ in inputs.of_step(step):
                now += 5.0
                inputs.prepare()
    values = clock.read()
    assert values["perf/data_wait_seconds"] == 3.0 * BATCHES
    assert values["perf/compute_seconds"] == 5.0 * BATCHES


def test_streams_are_told_of_each_other(monkeypatch):
    """Without a GPU: who waits for whom, and whose memory must outlive which stream."""
    told = []
    loader = Loader()
    inputs = inputs_of(loader, [], ahead=True)
    main = SimpleNamespace(wait_stream=lambda stream: told.append(f"wait for {stream}"))

    class Made(SimpleNamespace):
        def record_stream(self, stream: object) -> None:
            told.append(f"keep {self.name}" if stream is main else "wrong stream")

    @contextmanager
    def on(stream: object) -> Iterator[None]:
        told.append(f"into {stream}")
        yield
        told.append(f"out of {stream}")

    def masked(*_: object, **__: object) -> Any:
        told.append("make")
        return (Made(name="images"), Made(name="hidden")), Made(name="targets")

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(inputs, "_beside", "the other")
    monkeypatch.setattr(inputs, "_augment", masked)
    inputs.prepare()
    assert told == ["into the other", "make", "out of the other"]
    inputs.take()
    kept = ["keep images", "keep hidden", "keep targets"]
    assert told[3:] == ["wait for the other", *kept]


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
