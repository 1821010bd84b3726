"""Candidates that were tried, what came of them, and which is best. No torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from pretrain.tune.candidates import Candidate

NOISE_FRACTION = 0.02
"""Differences below this are none, however little the steps of one process vary."""
HEADROOM_FRACTION = 0.06
"""Share of the memory that stays free: one process alone measures neither NCCL's buffers nor what
evaluation and fragmentation take."""
ESTIMATE_SLACK = 1.1
"""An estimate above the memory by less than this is tried all the same."""
LEAST_SECONDS = 5.0
"""With less time left no further candidate is started."""

Kind = Literal["memory", "compile", "refused", "time", "crash", "not tried"]


@dataclass(frozen=True)
class Measured:
    """What a candidate did.

    Attributes:
        images_per_second: median over stretches of steps.
        spread_fraction: half the distance between the quartiles, over the median.
        start_seconds: from the start of its process to the end of the first step.
        peak_bytes: most that its tensors took at once; on a CPU most that its process held.
        held_bytes: most that its process held of the device.
    """

    images_per_second: float
    spread_fraction: float
    start_seconds: float
    peak_bytes: int
    held_bytes: int


@dataclass(frozen=True)
class Failure:
    """Why a candidate has no rate: its kind, and the reason in one line."""

    kind: Kind
    reason: str


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        candidate: what was tried.
        estimate_bytes: memory as the plan estimates it.
        outcome: what came of it.
        run_images: that a rank of the run sees in all.
    """

    candidate: Candidate
    estimate_bytes: int
    outcome: Measured | Failure
    run_images: float = math.inf

    @property
    def rate(self) -> float:
        """Images per second; 0 where it has none."""
        return self.outcome.images_per_second if isinstance(self.outcome, Measured) else 0.0

    @property
    def rate_of_run(self) -> float:
        """Images per second over a whole run, its start included: compiling must pay for itself."""
        if not isinstance(self.outcome, Measured):
            return 0.0
        per_image = 1 / self.rate + self.outcome.start_seconds / self.run_images
        return 1 / per_image


class OutOfTimeError(Exception):
    """The time for all candidates is over."""


class Trials:
    """Tries each candidate once at most, leaves out what cannot fit, and keeps the table.

    Args:
        run: measures a candidate in at most so many seconds.
        estimate: memory of a candidate in bytes, as the plan has it.
        memory_bytes: what the device has.
        limit_seconds: longest time of one candidate.
        seconds_left: of all the time.
        report: told of each new or renewed row.
        run_images: that a rank of the run sees in all; infinite where nobody knows.
    """

    def __init__(
        self,
        run: Callable[[Candidate, float], Measured | Failure],
        estimate: Callable[[Candidate], int],
        memory_bytes: int,
        limit_seconds: float,
        seconds_left: Callable[[], float],
        report: Callable[[Row], None],
        run_images: float = math.inf,
    ) -> None:
        self._run = run
        self._estimate = estimate
        self.memory_bytes = memory_bytes
        self._limit_seconds = limit_seconds
        self._seconds_left = seconds_left
        self._report = report
        self._run_images = run_images
        self._rows: dict[Candidate, Row] = {}

    @property
    def rows(self) -> list[Row]:
        """All that were tried or left out, in order."""
        return list(self._rows.values())

    def rate(self, candidate: Candidate) -> float:
        """Return the rate of a candidate, 0 where it has none or comes too near to the memory.

        Raises:
            OutOfTimeError: it was not tried yet, and there is no time.
        """
        row = self._rows.get(candidate)
        if row is None:
            outcome = self._try(candidate)
            row = Row(candidate, self._estimate(candidate), outcome, self._run_images)
            self._rows[candidate] = row
            self._report(row)
        return row.rate if self.fits(row) else 0.0

    def again(self, candidate: Candidate) -> None:
        """Measure a candidate that has a rate once more, and keep the mean of both.

        Raises:
            OutOfTimeError: there is no time.
        """
        row = self._rows[candidate]
        before, now = row.outcome, self._measure(candidate)
        if not isinstance(before, Measured) or not isinstance(now, Measured):
            return
        mean = (before.images_per_second + now.images_per_second) / 2
        apart = abs(before.images_per_second - now.images_per_second) / 2 / mean
        both = replace(
            before,
            images_per_second=mean,
            spread_fraction=max(before.spread_fraction, now.spread_fraction, apart),
            peak_bytes=max(before.peak_bytes, now.peak_bytes),
            held_bytes=max(before.held_bytes, now.held_bytes),
        )
        self._rows[candidate] = replace(row, outcome=both)
        self._report(self._rows[candidate])

    def fits(self, row: Row) -> bool:
        """Whether a candidate leaves as much memory as a run of several ranks needs."""
        most = (1 - HEADROOM_FRACTION) * self.memory_bytes
        return isinstance(row.outcome, Measured) and row.outcome.held_bytes <= most

    def best(self, own: Candidate) -> Row | None:
        """The fastest that fits; of those that are as fast within noise the simplest.

        That is the one that differs in the fewest fields from the config, and then the one that
        takes least memory. None where nothing fits.
        """
        fitting = [row for row in self.rows if self.fits(row)]
        if not fitting:
            return None
        fastest = max(fitting, key=lambda row: row.rate_of_run)
        equal = [row for row in fitting if not is_faster(fastest, row)]
        return min(
            equal,
            key=lambda row: (
                row.candidate.differences(own),
                row.estimate_bytes,
                -row.rate_of_run,
            ),
        )

    def row_of(self, candidate: Candidate) -> Row | None:
        """What came of a candidate; None where it was not tried."""
        return self._rows.get(candidate)

    def _try(self, candidate: Candidate) -> Measured | Failure:
        expected = self._expected_bytes(candidate)
        if expected > ESTIMATE_SLACK * self.memory_bytes:
            gib = 2**30
            return Failure(
                "not tried",
                f"needs about {expected / gib:.1f} of {self.memory_bytes / gib:.1f} GiB",
            )
        for row in self.rows:
            outcome = row.outcome
            if (
                isinstance(outcome, Failure)
                and outcome.kind == "memory"
                and row.candidate.choices == candidate.choices
                and row.estimate_bytes <= self._estimate(candidate)
            ):
                return Failure("not tried", "needs more than one that ran out of memory")
        return self._measure(candidate)

    def _measure(self, candidate: Candidate) -> Measured | Failure:
        left = self._seconds_left()
        if left < LEAST_SECONDS:
            raise OutOfTimeError
        return self._run(candidate, min(self._limit_seconds, left))

    def _expected_bytes(self, candidate: Candidate) -> float:
        """The estimate, corrected by how far it was off at the last candidate of most memory."""
        seen = [row for row in self.rows if isinstance(row.outcome, Measured)]
        if not seen:
            return self._estimate(candidate)
        nearest = max(seen, key=lambda row: row.estimate_bytes)
        assert isinstance(nearest.outcome, Measured)  # noqa: S101 - for the type checker
        off = nearest.outcome.peak_bytes - nearest.estimate_bytes
        return self._estimate(candidate) + off


def is_faster(one: Row, other: Row) -> bool:
    """Whether a run is faster with one candidate than with another, by more than both vary."""
    if not isinstance(one.outcome, Measured) or not isinstance(other.outcome, Measured):
        return isinstance(one.outcome, Measured)
    noise = max(NOISE_FRACTION, one.outcome.spread_fraction, other.outcome.spread_fraction)
    return one.rate_of_run > (1 + noise) * other.rate_of_run
