"""When a run will end, from what was measured so far and what is planned. No torch."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median, median_low
from typing import Any, NamedTuple

FORWARD_SHARE = 1 / 3
"""Of a training step's work; what evaluation takes for an image until it was measured."""
SAVE_BYTES_PER_SECOND = 0.5e9
"""Assumed of the file system until a save was waited for."""

WARM_UP_STEPS = 16
WARM_UP_SHARE = 1 / 8
"""So many steps are left out at the start of an attempt, or that share of its steps if it is less,
but one at least."""
WINDOW_STEPS = 200
WINDOW_SHARE = 1 / 5
WINDOW_STEPS_MAX = 10_000
"""The step time is a mean over so many steps, or that share of the run if it is more."""
STALL_FACTOR = 3.0
"""The longest step of the window is left out where it is longer than so many others."""
RECENT_STEPS = 16
RECENT_SHARE = 1 / 50
CHANGE_FRACTION = 0.25
CHANGE_AGREED = 0.9
"""Speed has changed where, of so many recent steps, or of that share of the run if it is more, the
median is so far from that of the steps before, and so many lie on the same side of it."""
BEFORE_STEPS = 8
BEFORE_FRACTION = 0.25
"""An earlier attempt's step time weighs that many steps; nothing where it is so far off."""
REMEMBERED = 5
"""Evaluations and saves behind a median."""


class Evaluated(NamedTuple):
    """What is evaluated time and again.

    Attributes:
        every_steps: steps between evaluations; another one follows the last step.
        images: images of one, times the weights that they are shown to.
    """

    every_steps: int
    images: int


class Forecast:
    """Remaining steps, evaluations and saves, each at what it is measured to take.

    A step's time is a mean over a window that ends with the newest step, so that stalls count that
    come time and again. Left out are the first steps of an attempt, a single stall and, once speed
    has changed, what came before. An evaluation costs what one of as many images did; before the
    first it is reckoned from the training rate.

    Args:
        total_steps: steps of the whole run.
        global_batch: images of one step over all ranks.
        evaluated: every split that is evaluated.
        save_every_steps: steps between checkpoints, the last step included.
        saves_evaluated: whether state is also saved after each evaluation.
        saves_waited_for: whether training waits for periodic saves; it does for the last one.
        save_bytes: size of a checkpoint.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        global_batch: int,
        evaluated: Sequence[Evaluated],
        save_every_steps: int,
        saves_evaluated: bool = False,
        saves_waited_for: bool = True,
        save_bytes: int = 0,
    ) -> None:
        self._total_steps = total_steps
        self._global_batch = global_batch
        images_at = _images_by_step(evaluated, total_steps)
        self._evaluations = {
            images: [step for step, due in images_at.items() if due == images]
            for images in sorted(set(images_at.values()))
        }
        saves = set(range(save_every_steps, total_steps, save_every_steps))
        self._saves = sorted(saves | (set(images_at) - {total_steps} if saves_evaluated else set()))
        self._saves_waited_for = saves_waited_for
        self._save_bytes = save_bytes
        self._window: deque[float] = deque(
            maxlen=min(WINDOW_STEPS_MAX, max(WINDOW_STEPS, round(total_steps * WINDOW_SHARE)))
        )
        self._recent_steps = round(max(RECENT_STEPS, total_steps * RECENT_SHARE))
        self._steps = 0
        self._left_out = 0
        self._done = {"evaluation": True, "save": True}  # what follows the newest step
        self._evaluation_seconds: dict[int, deque[float]] = {}
        self._save_seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._write_seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._before: Mapping[str, Any] = {}

    def add_step(self, seconds: float) -> None:
        """Count one step, with all that came since the one before but evaluation and saving."""
        self._steps += 1
        self._window.append(seconds)
        self._done = {"evaluation": False, "save": False}
        while self._left_out < min(WARM_UP_STEPS, max(1, self._steps * WARM_UP_SHARE)):
            self._window.popleft()
            self._left_out += 1
        if self._steps % self._recent_steps == 0:
            self._forget_other_speed()

    def add_evaluation(self, images: int, seconds: float) -> None:
        """Count an evaluation of so many images, times the weights that they were shown to."""
        known = self._evaluation_seconds.setdefault(images, deque(maxlen=REMEMBERED))
        known.append(seconds)
        self._done["evaluation"] = True

    def add_save(self, seconds: float) -> None:
        """Count how long training waited for one save."""
        self._save_seconds.append(seconds)
        self._done["save"] = True

    def add_write(self, seconds: float) -> None:
        """Count how long one save took to be on the disk, beside training or not."""
        self._write_seconds.append(seconds)

    def remaining_seconds(
        self, step: int, *, within: str | None = None, elapsed_seconds: float = 0.0
    ) -> float | None:
        """Time until the end of the last save; None before the second step of the first attempt.

        Args:
            step: steps done; what is due after them counts until it was added.
            within: ``evaluation`` or ``save`` while one is under way.
            elapsed_seconds: since it began.
        """
        step_seconds = self.step_seconds()
        if step_seconds is None:
            return None
        seconds = (self._total_steps - step) * step_seconds
        due = 0.0  # of what is under way
        for images, steps in self._evaluations.items():
            cost = self._evaluation_cost(images, step_seconds)
            seconds += cost * self._count(steps, step, "evaluation")
            if within == "evaluation" and step in steps:
                due = cost
        save, last = self._save_cost(), self._last_save_cost()
        seconds += save * self._count(self._saves, step, "save")
        seconds += last * self._count([self._total_steps], step, "save")
        if within == "save":
            due = last if step == self._total_steps else save
        return max(0.0, seconds - min(due, elapsed_seconds))

    def step_seconds(self) -> float | None:
        """What a step takes; None before anything is known."""
        before = self._before.get("step_seconds")
        if not self._window:
            return before
        count, total = len(self._window), sum(self._window)
        longest = max(self._window)
        if count > 1 and longest > STALL_FACTOR * (total - longest) / (count - 1):
            count, total = count - 1, total - longest
        own = total / count
        if before is None or abs(before - own) > BEFORE_FRACTION * own:
            return own
        return (total + BEFORE_STEPS * before) / (count + BEFORE_STEPS)

    def state(self) -> dict[str, Any]:
        """What was measured, to be saved with a checkpoint (JSON-able)."""
        evaluation = dict(self._before.get("evaluation_seconds", {}))
        evaluation |= {
            str(images): median_low(known) for images, known in self._evaluation_seconds.items()
        }
        return {
            "step_seconds": self.step_seconds(),
            "evaluation_seconds": evaluation,
            "save_seconds": self._measured(self._save_seconds, "save_seconds"),
            "write_seconds": self._measured(self._write_seconds, "write_seconds"),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what an earlier attempt measured, perhaps on other machines."""
        self._before = state

    def _forget_other_speed(self) -> None:
        steps = list(self._window)
        earlier, recent = steps[: -self._recent_steps], steps[-self._recent_steps :]
        if len(earlier) < RECENT_STEPS:
            return
        was, now = median(earlier), median(recent)
        beyond = sum((seconds > was) == (now > was) for seconds in recent)
        if abs(now - was) > CHANGE_FRACTION * was and beyond >= CHANGE_AGREED * len(recent):
            self._window = deque(recent, self._window.maxlen)

    def _count(self, steps: Sequence[int], done: int, kind: str) -> int:
        """How many of some steps are to come, the one just done included if it is not over."""
        passed = bisect_right if self._done[kind] else bisect_left
        return len(steps) - passed(steps, done)

    def _evaluation_cost(self, images: int, step_seconds: float) -> float:
        known = self._evaluation_seconds.get(images)
        if known:
            return median_low(known)
        before = self._before.get("evaluation_seconds", {}).get(str(images))
        speed_before = self._before.get("step_seconds")
        if before is not None and speed_before:
            return before * step_seconds / speed_before
        rates = [median_low(known) / size for size, known in self._evaluation_seconds.items()]
        if rates:
            return images * median(rates)
        return images * FORWARD_SHARE * step_seconds / self._global_batch

    def _save_cost(self) -> float:
        assumed = self._save_bytes / SAVE_BYTES_PER_SECOND if self._saves_waited_for else 0.0
        known = self._measured(self._save_seconds, "save_seconds")
        return assumed if known is None else known

    def _last_save_cost(self) -> float:
        known = self._measured(self._write_seconds, "write_seconds")
        assumed = self._save_bytes / SAVE_BYTES_PER_SECOND
        return max(self._save_cost(), assumed if known is None else known)

    def _measured(self, known: Sequence[float], name: str) -> float | None:
        return median_low(known) if known else self._before.get(name)


def _images_by_step(evaluated: Sequence[Evaluated], total_steps: int) -> dict[int, int]:
    """Images evaluated after each step after which there are some, in the order of steps."""
    images: dict[int, int] = {}
    for every_steps, count in evaluated:
        for step in {*range(every_steps, total_steps + 1, every_steps), total_steps}:
            images[step] = images.get(step, 0) + count
    return dict(sorted(images.items()))
