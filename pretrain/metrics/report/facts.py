"""What the files of a run say, read once for a page; what is missing or damaged is left out."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pretrain.credentials import without_url_secrets
from pretrain.files import read_json
from pretrain.metrics.jsonl import read_lines
from pretrain.metrics.names import METRICS
from pretrain.run_directory import RunDirectory

Records = Sequence[Mapping[str, Any]]
_WRITTEN_LATER = "attempt_explained"
"""An event that the next attempt writes about the one before: no sign of its life."""

_LEDGER = ("start", "end")
_STATES = {
    "give_up": "failed",
    "stop": "stopped",
    "restart": "waiting",
    "requeue": "waiting",
    "resubmit": "waiting",
}
"""What a run is whose newest attempt ended so, by what the supervisor went on to do."""


@dataclass(frozen=True)
class Series:
    """One metric over a run.

    Attributes:
        steps: int64 [n], rising.
        values: float64 [n], finite.
    """

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])


@dataclass(frozen=True)
class Life:
    """One attempt, as far as the files tell.

    Attributes:
        number: from 1.
        first: unix seconds at which it began or first wrote anything.
        last: at which it ended or last wrote anything.
        steps: first and last step that it recorded and that still count; None without.
        outcome: how it ended, in a word; ``""`` where nobody noted it.
        reason: the same in a sentence.
    """

    number: int
    first: float
    last: float
    steps: tuple[int, int] | None
    outcome: str
    reason: str

    @property
    def seconds(self) -> float:
        """How long it lived."""
        return max(self.last - self.first, 0.0)


@dataclass(frozen=True)
class Facts:
    """A run, read.

    Attributes:
        run: its directory.
        records: whole lines of metrics.jsonl with a step and a time.
        events: of events.jsonl.
        ledger: of attempts.jsonl.
        progress: progress.json; its state is ``not started`` where there is none.
        plan: plan.json.
        environment: environment.json.
        by_class: by_class.json.
    """

    run: RunDirectory
    records: Records
    events: Records
    ledger: Records
    progress: Mapping[str, Any]
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]
    by_class: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.run.path.name

    @property
    def state(self) -> str:
        """What the run is doing: by the supervisor's word where it spoke last, else by its own."""
        last = next((line for line in reversed(self.ledger) if line.get("event") in _LEDGER), {})
        return _STATES.get(str(last.get("next"))) or str(self.progress.get("state"))

    @cached_property
    def series(self) -> dict[str, Series]:
        """Every metric that was recorded, by name."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        for record in self.records:
            step = record["step"]
            for name, value in record.items():
                if isinstance(value, float | int) and name in METRICS and math.isfinite(value):
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(step)
                    values.append(value)
        return {
            name: Series(np.array(steps), np.array(values, dtype=float))
            for name, (steps, values) in found.items()
        }

    @cached_property
    def lives(self) -> list[Life]:
        """Every attempt that left a trace, in order."""
        seen: dict[int, list[float]] = {}
        steps: dict[int, list[int]] = {}
        ends: dict[int, dict[str, Any]] = {}
        for line in (*self.records, *self.events, *self.ledger):
            number, stamp = line.get("attempt"), line.get("time")
            if not isinstance(number, int) or not isinstance(stamp, int | float):
                continue
            kind = line.get("event")
            if kind in ("end", "finding") and "nodes" not in line:
                ends.setdefault(number, {}).update(line)
            if kind not in (_WRITTEN_LATER, "finding"):
                seen.setdefault(number, []).append(float(stamp))
            if "step" in line and kind is None:
                steps.setdefault(number, []).append(line["step"])
        newest = self.progress.get("attempt")
        if isinstance(newest, int) and newest in seen:
            ends.setdefault(newest, {"outcome": self.state})
        return [
            Life(
                number,
                min(stamps),
                max(stamps),
                (steps[number][0], steps[number][-1]) if number in steps else None,
                str(ends.get(number, {}).get("outcome") or ""),
                str(ends.get(number, {}).get("reason") or ""),
            )
            for number, stamps in sorted(seen.items())
        ]

    @property
    def seconds(self) -> float:
        """Wall time of all attempts, without what lay between them."""
        return sum(life.seconds for life in self.lives)

    @cached_property
    def hours(self) -> Series:
        """Hours that the run had lived when it recorded a step; by step."""
        starts, before = {}, 0.0
        for life in self.lives:
            starts[life.number] = (life.first, before)
            before += life.seconds
        steps, hours = [], []
        for record in self.records:
            first, spent = starts.get(record.get("attempt", 1), (record["time"], 0.0))
            steps.append(record["step"])
            hours.append((spent + record["time"] - first) / 3600)
        return Series(np.array(steps), np.maximum.accumulate(np.array(hours, dtype=float)))


def read_facts(run: RunDirectory) -> Facts:
    """Read a run."""
    records = [
        line
        for line in _lines(run.metrics_path)
        if type(line.get("step")) is int and type(line.get("time")) in (int, float)
    ]
    progress = _object(run.progress_path) or {"state": "not started"}
    return Facts(
        run=run,
        records=records,
        events=_lines(run.events_path),
        ledger=_lines(run.attempts_path),
        progress=progress,
        plan=_object(run.plan_path),
        environment=_object(run.environment_path),
        by_class=_object(run.by_class_path),
    )


def config_of(run: RunDirectory) -> dict[str, Any] | None:
    """A run's config, of any version of this program, with URLs as they may be shown."""
    try:
        values = yaml.safe_load(text_of(run.config_path))
    except yaml.YAMLError:
        return None
    return without_url_secrets(values) if isinstance(values, dict) else None


def text_of(path: Path) -> str:
    """A file's text; nothing where it cannot be read."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _lines(path: Path) -> list[dict[str, Any]]:
    with suppress(OSError):
        return read_lines(path)
    return []


def _object(path: Path) -> dict[str, Any]:
    with suppress(OSError):
        return read_json(path) or {}
    return {}
