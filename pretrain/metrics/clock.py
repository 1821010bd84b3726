"""Where the time goes: seconds by phase, throughput, and when the run will end."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeVar

Phase = Literal["data", "step", "evaluation", "save"]
Item = TypeVar("Item")

STEP_MEMORY = 0.9
"""Weight of the past in the step time behind the ETA, per record: it follows about ten records."""


class Clock:
    """Times one rank's phases; rank zero's is the one that is recorded.

    Phases may nest: the inner one's time is not counted in the outer, so waiting for data inside a
    step counts as data. Time outside any phase counts as training.

    Args:
        global_batch: images of one step over all ranks.
        total_steps: steps of the whole run.
        evaluate_every_steps: steps between evaluations, the last step included; None without any.
        save_every_steps: steps between checkpoints, the last step included.
        now: seconds that only grow.
        on_phase: told of every phase that begins or goes on; None is the time outside of them.
    """

    def __init__(
        self,
        *,
        global_batch: int,
        total_steps: int,
        evaluate_every_steps: int | None,
        save_every_steps: int,
        now: Callable[[], float] = time.monotonic,
        on_phase: Callable[[Phase | None], None] = lambda phase: None,
    ) -> None:
        self._global_batch = global_batch
        self._total_steps = total_steps
        self._every_steps = {"evaluation": evaluate_every_steps, "save": save_every_steps}
        self._now = now
        self._on_phase = on_phase
        self._stack: list[Phase] = []
        self._interval_start = self._mark = now()
        self._seconds: dict[Phase, float] = _no_seconds()
        self._steps = 0
        self._written = {"wait": 0.0, "write": 0.0}
        self._step_seconds_sum = 0.0
        self._step_weight = 0.0
        self._long_seconds = {"evaluation": 0.0, "save": 0.0}
        self._long_count = {"evaluation": 0, "save": 0}

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Count the time of the ``with`` block; a ``step`` block that ends well is one step."""
        started = self._now()
        self._charge(started)
        self._stack.append(phase)
        self._on_phase(phase)
        try:
            yield
        finally:
            ended = self._now()
            self._charge(ended)
            self._stack.pop()
            self._on_phase(self._stack[-1] if self._stack else None)
        if phase == "step":
            self._steps += 1
        elif phase != "data":
            self._long_seconds[phase] += ended - started
            self._long_count[phase] += 1

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with the wait for each counted as data."""
        iterator = iter(items)
        while True:
            with self.phase("data"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def count_save(self, *, write_seconds: float, wait_seconds: float) -> None:
        """Count a save that ended, and how much of the time in ``save`` was waiting for it."""
        self._written["write"] += write_seconds
        self._written["wait"] += wait_seconds

    def read(self) -> dict[str, float]:
        """The ``perf/`` metrics since the last call, which starts the next interval.

        Call it outside all phases. Without a step in the interval there is nothing to say but the
        seconds of evaluation and saving.
        """
        now = self._now()
        elsewhere = self._seconds["evaluation"] + self._seconds["save"]
        training = max(now - self._interval_start - elsewhere, 1e-9)
        values = {
            "perf/evaluation_seconds": self._seconds["evaluation"],
            "perf/save_seconds": self._seconds["save"],
            "perf/save_wait_seconds": self._written["wait"],
            "perf/save_write_seconds": self._written["write"],
        }
        if self._steps:
            values["perf/images_per_second"] = self._steps * self._global_batch / training
            values["perf/step_seconds"] = training / self._steps
            values["perf/data_wait_fraction"] = min(self._seconds["data"] / training, 1.0)
            self._step_seconds_sum = STEP_MEMORY * self._step_seconds_sum + training
            self._step_weight = STEP_MEMORY * self._step_weight + self._steps
        self._interval_start = self._mark = now
        self._seconds = _no_seconds()
        self._written = {"wait": 0.0, "write": 0.0}
        self._steps = 0
        return values

    def eta_seconds(self, step: int) -> float | None:
        """Seconds until the end, after ``step`` steps; None before the first `read`.

        Remaining steps, evaluations and saves, each at the mean of those measured; a kind that was
        never measured counts nothing.
        """
        if self._step_weight == 0:
            return None
        seconds = (self._total_steps - step) * self._step_seconds_sum / self._step_weight
        for phase, every in self._every_steps.items():
            if every is not None and self._long_count[phase]:
                mean = self._long_seconds[phase] / self._long_count[phase]
                seconds += mean * self._remaining(step, every)
        return seconds

    def state(self) -> dict[str, float]:
        """The means behind the ETA, to be saved with a checkpoint (JSON-able)."""
        return {
            "step_seconds_sum": self._step_seconds_sum,
            "step_weight": self._step_weight,
            **{f"{phase}_seconds": value for phase, value in self._long_seconds.items()},
            **{f"{phase}_count": value for phase, value in self._long_count.items()},
        }

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take up the means of `state`; the new attempt's own measurements soon outweigh them."""
        self._step_seconds_sum = state["step_seconds_sum"]
        self._step_weight = state["step_weight"]
        for phase in self._long_seconds:
            self._long_seconds[phase] = state[f"{phase}_seconds"]
            self._long_count[phase] = int(state[f"{phase}_count"])

    def _charge(self, now: float) -> None:
        if self._stack:
            self._seconds[self._stack[-1]] += now - self._mark
        self._mark = now

    def _remaining(self, step: int, every: int) -> int:
        due = self._total_steps // every - step // every
        last_is_extra = self._total_steps % every != 0 and step < self._total_steps
        return due + int(last_is_extra)


def _no_seconds() -> dict[Phase, float]:
    return {"data": 0.0, "step": 0.0, "evaluation": 0.0, "save": 0.0}
