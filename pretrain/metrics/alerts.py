"""What somebody should hear of at once: rules over records and events, each once per episode.

Pure, no torch. Rank zero's recorder asks after every line and writes an event ``alert`` (``about``,
``text``, ``step``); the follow view, the report and Weights & Biases show those events.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

About = Literal[
    "non_finite_steps", "rewind", "bad_samples", "slow_data", "checkpoint_failed", "failure"
]

TITLES: dict[About, str] = {
    "non_finite_steps": "steps that were not finite",
    "rewind": "training went back",
    "bad_samples": "many bad samples",
    "slow_data": "training waits for data",
    "checkpoint_failed": "a checkpoint is missing",
    "failure": "an attempt failed",
}
_TEXTS = {
    "non_finite_steps": "step {step:,}: {skipped:.0f} of the last {steps:,} steps were not applied,"
    " as a gradient was not finite",
    "bad_samples": "step {step:,}: {bad:,.0f} of the last {images:,.0f} images were unreadable "
    "({fraction:.3%}, more than log.alert_bad_fraction {limit:.3%})",
    "slow_data": "step {step:,}: {wait:.0%} of the time goes into waiting for data, for {records} "
    "records now (log.alert_data_wait_fraction {limit:.0%})",
    "rewound": "step {steps_done:,}: {reason}; training went back to step {checkpoint_step:,}; "
    "Weights & Biases keeps its curves as far as they had come and goes on from there",
    "checkpoint_failed": "no checkpoint of step {step:,}, training goes on: {reason}",
    "checkpoint_refused": "a checkpoint was refused: {reason}",
    "ended": "attempt {attempt}: {reason}; {follows}",
}

WINDOW_RECORDS = 20
"""Records over which bad samples are counted."""
SLOW_RECORDS = 5
"""Records in a row that wait too long before it is said: the first of an attempt always waits."""
QUIET_RECORDS = 10
"""Records in a row without it end an episode; what comes after is said again."""


@dataclass(frozen=True)
class Alert:
    """Something to be said.

    Attributes:
        about: its kind.
        text: one line for people.
        step: steps done when it was noticed.
    """

    about: About
    text: str
    step: int


class Rules:
    """The rules over one run, with what they remember.

    Args:
        bad_fraction: of the images, above which unreadable ones are said.
        data_wait_fraction: of the time, above which waiting for data is said.
        records: the lines of the record that stand, in order: what was said of them is known.
        events: all that was written so far, in order; alerts among them are not said again.
    """

    def __init__(
        self,
        *,
        bad_fraction: float,
        data_wait_fraction: float,
        records: Iterable[Mapping[str, Any]] = (),
        events: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self._bad_limit = bad_fraction
        self._wait_limit = data_wait_fraction
        self._said_step: dict[str, int] = {}
        self._said_texts: set[str] = set()
        self._episodes: dict[About, _Episode] = {
            "non_finite_steps": _Episode(),
            "bad_samples": _Episode(),
            "slow_data": _Episode(SLOW_RECORDS),
        }
        self._window: deque[tuple[float, float]] = deque(maxlen=WINDOW_RECORDS)
        self._seen = 0.0
        self._step = 0
        self._checkpoint_missing = False
        for line in records:
            self.of_record(line)
        for event in events:
            self.of_event(str(event.get("event")), event)
        for about, episode in self._episodes.items():
            episode.open = episode.open or self._said_step.get(about, 0) > self._step

    def of_record(self, line: Mapping[str, Any]) -> list[Alert]:
        """Look at the next line of the record: ``step``, and numbers by name.

        Returns:
            What begins with it.
        """
        step = line["step"]
        found = [self._non_finite(line), self._bad_samples(line), self._slow_data(line)]
        if "train/skipped_steps" in line:
            self._step = step
        return [alert for alert in found if alert and step > self._said_step.get(alert.about, 0)]

    def of_event(self, kind: str, fields: Mapping[str, Any]) -> list[Alert]:
        """Look at the next event.

        Returns:
            What is to be said of it.
        """
        step = fields.get("step") or fields.get("steps_done") or self._step
        if kind == "alert":
            about = str(fields.get("about"))
            self._said_step[about] = max(step, self._said_step.get(about, 0))
            self._said_texts.add(str(fields.get("text")))
        elif kind == "checkpoint_saved":
            self._checkpoint_missing = False
        elif kind == "checkpoint_failed":
            known, self._checkpoint_missing = self._checkpoint_missing, True
            return [] if known else [Alert("checkpoint_failed", _text(kind, fields), step)]
        elif kind == "checkpoint_refused":
            text = _text(kind, fields)
            known = text in self._said_texts  # it is refused again at every start
            return [] if known else [Alert("checkpoint_failed", text, step)]
        elif kind == "rewound":
            return [Alert("rewind", _text(kind, fields), step)]
        return []

    def _non_finite(self, line: Mapping[str, Any]) -> Alert | None:
        skipped = line.get("train/skipped_steps")
        if skipped is None:
            return None
        steps = max(line["step"] - self._step, 1)
        # fp16 looks for its loss scale by losing a step now and then.
        wrong = skipped > (steps / 2 if line.get("train/loss_scale") else 0)
        if not self._episodes["non_finite_steps"].begins(wrong):
            return None
        values = {"step": line["step"], "skipped": skipped, "steps": steps}
        return Alert("non_finite_steps", _text("non_finite_steps", values), line["step"])

    def _bad_samples(self, line: Mapping[str, Any]) -> Alert | None:
        bad, seen = line.get("data/bad_samples"), line.get("data/samples_consumed")
        if bad is None or seen is None:
            return None
        self._window.append((bad, seen - self._seen))
        self._seen = seen
        bad, images = (sum(column) for column in zip(*self._window, strict=True))
        fraction = bad / max(images, 1)
        if not self._episodes["bad_samples"].begins(fraction > self._bad_limit):
            return None
        values = {"step": line["step"], "bad": bad, "images": images, "fraction": fraction}
        text = _text("bad_samples", values | {"limit": self._bad_limit})
        return Alert("bad_samples", text, line["step"])

    def _slow_data(self, line: Mapping[str, Any]) -> Alert | None:
        wait = line.get("perf/data_wait_fraction")
        if wait is None or not self._episodes["slow_data"].begins(wait > self._wait_limit):
            return None
        values = {"step": line["step"], "wait": wait, "records": SLOW_RECORDS}
        text = _text("slow_data", values | {"limit": self._wait_limit})
        return Alert("slow_data", text, line["step"])


class _Episode:
    """Something that goes on for a while, and is said when it begins.

    Args:
        records: in a row that make it one.
    """

    def __init__(self, records: int = 1) -> None:
        self._records = records
        self._wrong = self._quiet = 0
        self.open = False

    def begins(self, wrong: bool) -> bool:
        """Count one record; True where it makes an episode begin."""
        self._wrong = self._wrong + 1 if wrong else 0
        self._quiet = 0 if wrong else self._quiet + 1
        if self._quiet >= QUIET_RECORDS:
            self.open = False
        begins = not self.open and self._wrong >= self._records
        self.open = self.open or begins
        return begins


def end_text(attempt: int, reason: str, follows: str) -> str:
    """Return what is said of an attempt that ended badly.

    Args:
        attempt: its number.
        reason: of its end.
        follows: what comes next.
    """
    return _text("ended", {"attempt": attempt, "reason": reason, "follows": follows})


def _text(kind: str, fields: Mapping[str, Any]) -> str:
    try:
        return " ".join(_TEXTS[kind].format_map(fields).split())
    except (KeyError, ValueError, TypeError):  # an event of another version of this program
        return f"{kind.replace('_', ' ')}: {dict(fields)}"
