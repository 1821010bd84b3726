"""Where the time goes: seconds by phase, throughput, and what the forecast is made of."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from pretrain.metrics.forecast import Forecast

Phase = Literal["data", "step", "evaluation", "save"]
Item = TypeVar("Item")


class Clock:
    """Times one rank's phases; rank zero's is the one that is recorded.

    Phases may nest: the inner one's time is not counted in the outer, so waiting for data inside a
    step counts as data. Time outside any phase counts as training.

    Args:
        global_batch: images of one step over all ranks.
        forecast: told how long each step, evaluation and save took.
        ranks: devices that share a step.
        images_per_second_at_peak: of one device that did nothing but multiply; None if nobody
            knows.
        now: seconds that only grow.
        on_phase: told of every phase that begins or goes on; None is the time outside of them.
    """

    def __init__(
        self,
        *,
        global_batch: int,
        forecast: Forecast,
        ranks: int = 1,
        images_per_second_at_peak: float | None = None,
        now: Callable[[], float] = time.monotonic,
        on_phase: Callable[[Phase | None], None] = lambda phase: None,
    ) -> None:
        self._global_batch = global_batch
        self.forecast = forecast
        self._ranks = ranks
        self._peak = images_per_second_at_peak
        self._now = now
        self._on_phase = on_phase
        self._stack: list[Phase] = []
        self._interval_start = self._mark = now()
        self._seconds: dict[Phase, float] = _no_seconds()
        self._steps = 0
        self._written = {"wait": 0.0, "write": 0.0}
        self._step_ended = self._mark
        self._began = self._mark  # the newest phase
        self._elsewhere = 0.0  # in evaluation and saving, since the newest step

    @contextmanager
    def phase(self, phase: Phase, *, images: int = 0) -> Iterator[None]:
        """Count the time of the ``with`` block; a ``step`` block that ends well is one step.

        Args:
            phase: what is done.
            images: that are evaluated, times the weights that they are shown to.
        """
        started = self._began = self._now()
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
            self.forecast.add_step(ended - self._step_ended - self._elsewhere)
            self._step_ended, self._elsewhere = ended, 0.0
        elif phase != "data":
            self._elsewhere += ended - started
            if phase == "evaluation":
                self.forecast.add_evaluation(images, ended - started)
            else:
                self.forecast.add_save(ended - started)

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
        self.forecast.add_write(write_seconds)

    def read(self, communication_seconds: float | None = None) -> dict[str, float]:
        """The ``perf/`` metrics since the last call, which starts the next interval.

        Call it outside all phases. Without a step in the interval there is nothing to say but the
        seconds of evaluation and saving. Else the seconds of these two, of waiting for data, of
        communication and of computing add up to the interval.

        Args:
            communication_seconds: what one step waited for other ranks; None if nobody knows, and
                it then counts as computing.
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
            rate = self._steps * self._global_batch / training
            values["perf/images_per_second"] = rate
            values["perf/images_per_second_per_device"] = rate / self._ranks
            if self._peak is not None:
                values["perf/flop_utilisation_fraction"] = rate / self._ranks / self._peak
            values["perf/step_seconds"] = training / self._steps
            data = min(self._seconds["data"], training)
            values["perf/data_wait_fraction"] = data / training
            values["perf/data_wait_seconds"] = data
            communication = 0.0
            if communication_seconds is not None:
                communication = min(communication_seconds * self._steps, training - data)
                values["perf/communication_seconds"] = communication
            values["perf/compute_seconds"] = training - data - communication
        self._interval_start = self._mark = now
        self._seconds = _no_seconds()
        self._written = {"wait": 0.0, "write": 0.0}
        self._steps = 0
        return values

    def eta_seconds(self, step: int) -> float | None:
        """Seconds from now until the end, after ``step`` steps; None while nothing is known."""
        within = self._stack[-1] if self._stack else None
        return self.forecast.remaining_seconds(
            step, within=within, elapsed_seconds=self._now() - self._began
        )

    def _charge(self, now: float) -> None:
        if self._stack:
            self._seconds[self._stack[-1]] += now - self._mark
        self._mark = now


def _no_seconds() -> dict[Phase, float]:
    return {"data": 0.0, "step": 0.0, "evaluation": 0.0, "save": 0.0}
