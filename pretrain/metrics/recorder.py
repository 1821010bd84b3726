"""The record of a run: metrics.jsonl, events.jsonl, progress.json, the rank log, the mirror."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Literal, Self

from pretrain.config.schema import RunConfig
from pretrain.credentials import without_url_secrets
from pretrain.files import replace_text
from pretrain.metrics import console
from pretrain.metrics.alerts import Alert, Rules
from pretrain.metrics.jsonl import LineWriter, cut_back, cut_torn_end, plain, read_lines
from pretrain.metrics.mirror.mirror import WandbMirror
from pretrain.metrics.names import METRICS, accuracy_names, check_declared
from pretrain.metrics.report.process import Refresher
from pretrain.run_directory import RunDirectory

State = Literal["starting", "training", "evaluating", "saving", "done", "stopped"]

PROGRESS_SECONDS = 1.0
"""Least time between two versions of progress.json in the same state."""


class Recorder:
    """Writes what a run measures; only rank zero's writes anything, the others' calls do nothing.

    metrics.jsonl holds one line per call of `write`: ``{"step", "time", "attempt", name: value…}``
    with unix time and null for numbers that are not finite. At construction it is cut back to
    ``resume_step``, so that over any number of attempts each step's numbers are there once.
    events.jsonl is history and is never cut: ``{"time", "attempt", "event", field: value…}``.

    What somebody should hear of at once is an event ``alert``, by the rules of
    `pretrain.metrics.alerts`. Weights & Biases mirrors all of it from a process of its own; if it
    fails, one warning and one event say so. So it is with report.html, which is renewed beside
    training.

    Args:
        run: the run's directory, which must exist.
        config: the resolved config; its name, its ``wandb`` section, and all of it for the mirror.
        rank: this process's rank.
        attempt: number of this life of the run, from 1.
        resume_step: steps done in the state that training starts from; 0 from scratch.
        total_steps: steps of the whole run.
        steps_per_epoch: steps in one pass over the data; need not be whole.
        facts: what Weights & Biases shows of the run beside its config, JSON values without
            secrets.

    Attributes:
        eta_seconds: asked for the time until the end after so many steps, whenever that is said.

    A disk that takes no more ends nothing: lines wait in memory, and one line says so. Only `sync`
    insists.

    Raises:
        OSError: the record cannot be opened (full disk, no permission).
    """

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        *,
        rank: int,
        attempt: int,
        resume_step: int,
        total_steps: int,
        steps_per_epoch: float,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        self._writes = rank == 0
        self._run = run
        self._config = config
        self._attempt = attempt
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._facts = facts or {}
        self._state: State = "starting"
        self._evaluated_fraction: float | None = None
        self._progress_time = float("-inf")
        self.eta_seconds: Callable[[int], float | None] = lambda step: None
        self._unsaid_step: int | None = None
        self._last_checkpoint_step = resume_step or None
        self._latest: dict[str, float] = {}
        self._last_step = resume_step
        self._recorded: set[str] = set()
        self._waiting = False
        self._mirror: WandbMirror | None = None
        self._reports: Refresher | None = None
        self._report_failed = False
        if self._writes:
            self._open(resume_step)
            self._reports = Refresher(run, config.log.report_seconds)
            self._mirror = self._start_mirror()

    def _open(self, resume_step: int) -> None:
        cut = cut_back(self._run.metrics_path, resume_step)
        for line in cut.kept:
            self._latest.update(
                {name: line[name] for name in METRICS if line.get(name) is not None}
            )
            if line["step"] == resume_step:
                self._recorded.update(line.keys() & METRICS.keys())
        cut_torn_end(self._run.events_path)
        self._rules = Rules(
            bad_fraction=self._config.log.alert_bad_fraction,
            data_wait_fraction=self._config.log.alert_data_wait_fraction,
            records=cut.kept,
            events=read_lines(self._run.events_path),
        )
        self._metrics = LineWriter(self._run.metrics_path)
        self._events = LineWriter(self._run.events_path)
        if cut.removed or cut.damaged:
            self.event(
                "record_cut_back",
                resume_step=resume_step,
                lines_to_come_again=cut.removed,
                damaged_lines=cut.damaged,
            )
        self.progress(resume_step, "starting")

    def _start_mirror(self) -> WandbMirror | None:
        config = self._config
        if config.wandb.mode == "disabled":
            return None
        return WandbMirror(
            config.wandb,
            run=self._run,
            name=config.name,
            images_per_step=config.batch.global_size,
            config=without_url_secrets({**config.model_dump(mode="json"), **self._facts}),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step: one line in the record and one in the rank log.

        A step may be written in several calls with different names. A name recorded at the step
        that training resumed from keeps its first value.

        Args:
            step: steps done, from 1; never less than in the call before.
            values: by declared name; a NaN or infinity is recorded as null.

        Raises:
            ValueError: an undeclared name, or a step that runs backwards.
        """
        check_declared(values)
        if step < self._last_step:
            raise ValueError(f"metrics: step {step} was written after step {self._last_step}")
        if not self._writes:
            return
        if step > self._last_step:
            self._last_step = step
            self._recorded.clear()
        fresh = {
            name: float(values[name])
            for name in METRICS
            if name in values and name not in self._recorded
        }
        if not fresh:
            return
        self._recorded.update(fresh)
        stamp = {"step": step, "time": round(time.time(), 3), "attempt": self._attempt}
        self._append(self._metrics, {**stamp, **fresh})
        self._latest.update(fresh)
        self._print(
            console.record_line(
                step,
                fresh,
                total_steps=self._total_steps,
                epoch=step / self._steps_per_epoch,
                eta_seconds=self.eta_seconds(step),
            )
        )
        self.progress(step, self._state)
        self._alert(self._rules.of_record({"step": step, **fresh}))
        self._watch_mirror()
        self._refresh_report(evaluated=any(name.startswith("eval/") for name in fresh))

    def event(self, kind: str, **fields: object) -> None:
        """Record that something happened: a start, a stop, a refusal, a bad sample.

        Args:
            kind: lower case with underscores, such as ``bad_sample``.
            fields: whatever JSON holds; other values become their text.
        """
        if not self._writes:
            return
        stamp = {"time": round(time.time(), 3), "attempt": self._attempt, "event": kind}
        self._append(self._events, {**stamp, **fields})
        self._print(console.event_line(kind, fields))
        self._alert(self._rules.of_event(kind, fields))

    def _alert(self, alerts: list[Alert]) -> None:
        for alert in alerts:
            self.event("alert", about=alert.about, text=alert.text, step=alert.step)

    def progress(
        self,
        step: int,
        state: State,
        *,
        last_checkpoint_step: int | None = None,
        evaluated_fraction: float | None = None,
    ) -> None:
        """Say where the run stands, in progress.json; throttled while the state stays the same.

        Args:
            step: steps done.
            state: what the run is doing.
            last_checkpoint_step: newest checkpoint; None keeps the last one known.
            evaluated_fraction: how far the evaluation under way is.
        """
        if not self._writes:
            return
        news = state != self._state or last_checkpoint_step is not None
        self._state = state
        self._evaluated_fraction = evaluated_fraction
        if last_checkpoint_step is not None:
            self._last_checkpoint_step = last_checkpoint_step
        self._unsaid_step = step
        if news or time.monotonic() - self._progress_time >= PROGRESS_SECONDS:
            self._stand(step)

    def _stand(self, step: int) -> None:
        self._progress_time = time.monotonic()
        self._unsaid_step = None
        standing = json.dumps(plain(self._standing(step))) + "\n"
        # Whoever follows the run sees an old one; the next may find room again.
        with contextlib.suppress(OSError):
            replace_text(self._run.progress_path, standing)

    def _standing(self, step: int) -> dict[str, object]:
        own, probe = accuracy_names(self._config.ema.given)
        return {
            "state": self._state,
            "step": step,
            "total_steps": self._total_steps,
            "epoch": step / self._steps_per_epoch,
            "epochs": self._total_steps / self._steps_per_epoch,
            "steps_per_epoch": self._steps_per_epoch,
            "images_per_second": self._latest.get("perf/images_per_second"),
            "images_per_second_per_device": self._latest.get("perf/images_per_second_per_device"),
            "data_wait_fraction": self._latest.get("perf/data_wait_fraction"),
            "loss": self._latest.get("train/loss"),
            "accuracy_fraction": self._latest.get("train/accuracy_fraction"),
            "eval_top1_fraction": self._latest.get(own),
            "probe_top1_fraction": self._latest.get(probe),
            "evaluated_fraction": self._evaluated_fraction,
            "eta_seconds": 0.0 if self._state == "done" else self.eta_seconds(step),
            "last_checkpoint_step": self._last_checkpoint_step,
            "time": time.time(),
            "attempt": self._attempt,
        }

    def rewind(self, step: int) -> None:
        """Take back the numbers after a step, whose training begins again from there."""
        self._last_step = step
        self._last_checkpoint_step = step
        if not self._writes:
            return
        self._close_files()
        self._latest.clear()
        self._recorded.clear()
        self._open(step)

    def sync(self) -> None:
        """Wait until the record is on the disk; call it before a checkpoint that implies it.

        Raises:
            OSError: it is not.
        """
        if self._writes:
            self._metrics.sync()
            self._events.sync()

    def close(self, *, orderly: bool = True) -> None:
        """Finish the mirror (within its time limit) and close the files; again does nothing.

        Args:
            orderly: False after an error, when the last step may not be all there.
        """
        if not self._writes:
            return
        if self._unsaid_step is not None:  # after an error: how far it came
            self._stand(self._unsaid_step)
        if self._reports is not None:
            self._reports.close()
        if self._mirror is not None:
            with contextlib.suppress(OSError):
                self._metrics.sync()
            self._mirror.close(orderly=orderly)
            self._watch_mirror()
        self._close_files()
        self._writes = False

    def _append(self, writer: LineWriter, value: Mapping[str, object]) -> None:
        error = writer.append(value)
        if error is not None and not self._waiting:
            self._print(f"the record cannot be written ({error.strerror}); it waits in memory")
        self._waiting = error is not None

    def _close_files(self) -> None:
        for writer in (self._metrics, self._events):
            try:
                writer.close()
            except OSError as error:
                # No checkpoint implies what is lost: the next attempt comes by it again.
                self._print(f"the end of the record could not be written ({error.strerror})")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(orderly=kind is None)

    def _watch_mirror(self) -> None:
        if self._mirror is None:
            return
        problem = self._mirror.problem()
        if problem is not None:
            self._mirror = None
            self.event("wandb_failed", reason=problem, consequence="metrics.jsonl is complete")

    def _refresh_report(self, *, evaluated: bool) -> None:
        if self._reports is None:
            return
        self._reports.refresh(evaluated=evaluated)
        problem = self._reports.problem()
        if problem is not None and not self._report_failed:
            self._report_failed = True
            self.event("report_failed", reason=problem, consequence="it is tried again")

    @staticmethod
    def _print(line: str) -> None:
        # Standard output may be a file on the same full disk.
        with contextlib.suppress(OSError):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
