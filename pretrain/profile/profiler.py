"""Profiles some steps of an attempt, and leaves their trace and a page about it."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Any, Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from pretrain.files import make_private, replace_text
from pretrain.job import Job
from pretrain.models.masked import MaskedSwin
from pretrain.models.swin import Swin
from pretrain.plan.resources import cpu_name
from pretrain.profile.events import PARTS
from pretrain.profile.page import render
from pretrain.profile.ranges import ranges
from pretrain.profile.trace import METADATA, read_trace, take_apart

VIEWER = "https://ui.perfetto.dev"
_BEFORE = ("parameters", "master weights", "moments", "average of weights")
"""Parts of the plan's memory that are there all the time."""


class Profiler:
    """Counts an attempt's steps and profiles those that the config's section ``profile`` names.

    Every rank has one and calls it alike; ranks that are not to be profiled only count. It is
    entered for as long as steps are taken. Outside the profiled steps nothing of torch's profiler
    runs. What goes wrong with the files is told and ends nothing.

    Args:
        job: this rank's share of the run.
        model: what is trained.
        event: records an event, as `Recorder.event`.
    """

    def __init__(self, job: Job, model: Swin | MaskedSwin, event: Callable[..., None]) -> None:
        self._job = job
        self._model = model
        self._event = event
        settings = job.config.profile
        self._first, self._last = settings.first_step, settings.first_step + settings.steps
        self._asked = settings.steps > 0
        self._mine = self._asked and job.world.rank in settings.ranks
        self._taken = 0
        self._done = 0
        self._mark = 0.0
        self._seconds_before: list[float] = []
        self._torch: profile | None = None
        self._around = ExitStack()
        self._phase: AbstractContextManager[object] = nullcontext()

    def __enter__(self) -> Self:
        self._mark = time.perf_counter()
        if self._mine and self._taken == self._first - 1:
            self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None and self._torch is not None:
            self._finish()
            self._mine = False
        self._around.close()

    def range(self, name: str) -> AbstractContextManager[object]:
        """A range of the trace for a ``with`` block, while steps are profiled."""
        return nullcontext() if self._torch is None else record_function(name)

    def enter(self, phase: str | None) -> None:
        """Begin a range for a phase of the clock and end the one before."""
        if self._torch is not None:
            self._phase.__exit__(None, None, None)
            self._phase = self.range(phase) if phase in PARTS else nullcontext()
            self._phase.__enter__()

    def step_done(self, done: int) -> str | None:
        """Count a step that ended; outside all ranges.

        Args:
            done: steps of the run done.

        Returns:
            Why the run is to stop now, the same on every rank, or None.
        """
        if not self._asked or self._taken >= self._last:
            return None
        self._taken += 1
        self._done = done
        if self._mine:
            self._advance()
        ends = self._taken == self._last
        return "profile.stop" if ends and self._job.config.profile.stop else None

    def _advance(self) -> None:
        now = time.perf_counter()
        if self._taken < self._first:
            self._seconds_before.append(now - self._mark)
        if self._torch is not None:
            if self._taken == self._first and torch.cuda.is_available():
                torch.cuda.synchronize()  # what was launched before belongs to no profiled step
            self._torch.step()
            if self._taken == self._first:
                self._torch.add_metadata_json(METADATA, json.dumps(self._about(self._done + 1)))
        if self._taken == self._first - 1:
            self._start()
        elif self._taken == self._last:
            self._finish()
        self._mark = time.perf_counter()

    def _start(self) -> None:
        """Get ready: the profiler takes one step to warm up."""
        activities = [ProfilerActivity.CPU]
        if torch.device(self._job.device).type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._around.enter_context(ranges(self._model))
        self._torch = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=1, active=self._last - self._first, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            profile_memory=self._job.config.profile.memory,
        )
        self._torch.start()

    def _finish(self) -> None:
        assert self._torch is not None  # noqa: S101 - for the type checker
        self._torch.stop()
        self._torch = None
        self._around.close()

    def _write(self, ended: profile) -> None:
        job = self._job
        first = self._done - self._taken + self._first + 1
        stem = f"attempt_{job.attempt:03d}_steps_{first}-{self._done}_rank_{job.world.rank:03d}"
        trace = job.run.profile_dir / f"trace_{stem}.json.gz"
        page = job.run.profile_dir / f"summary_{stem}.txt"
        try:
            make_private(trace.parent)
            ended.export_chrome_trace(str(trace))
            replace_text(page, render(take_apart(read_trace(trace))))
        except Exception as error:  # noqa: BLE001 - no profile is worth a run
            self._event("profile_failed", reason=f"{type(error).__name__}: {error}")
            return
        told = {"summary": str(page), "trace": str(trace), "open in": VIEWER}
        self._event("profiled", **told)
        if job.world.rank != 0:  # whose events go nowhere
            sys.stdout.write(f"profiled: {told}\n")

    def _about(self, first: int) -> dict[str, Any]:
        """What the page must know and a trace does not say."""
        job, config, plan = self._job, self._job.config, self._job.plan
        on_cuda = torch.device(job.device).type == "cuda"
        # The first step of an attempt builds what the others only use.
        before = self._seconds_before[1:] or self._seconds_before
        return {
            "run": config.name,
            "attempt": job.attempt,
            "rank": job.world.rank,
            "ranks": job.world.size,
            "first_step": first,
            "host": platform.node(),
            "device": torch.cuda.get_device_name(job.device) if on_cuda else cpu_name(),
            "threads": job.threads,
            "torch": torch.__version__,
            "variant": config.model.variant,
            "image_size": config.model.image_size,
            "precision": config.engine.precision,
            "zero_stage": config.engine.zero_stage,
            "offload": config.engine.offload,
            "compile": config.engine.compile,
            "layer_norm": config.engine.layer_norm,
            "activation_checkpointing": config.engine.activation_checkpointing,
            "masked": config.masking is not None,
            "micro_batch": plan.micro_batch,
            "accumulation": plan.accumulation,
            "global_batch": plan.global_batch,
            "forward_macs_per_image": plan.forward_macs_per_image,
            "seconds_before": statistics.median(before) if before else None,
            "steps_before": len(before),
            "bytes_before": {name: plan.memory[name] for name in _BEFORE if name in plan.memory},
        }
