"""Candidates of one tuning, estimated and measured. No torch."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from pretrain.config.load import read_run, to_yaml
from pretrain.config.schema import RunConfig
from pretrain.errors import ConfigError
from pretrain.plan.memory import GIB, memory_bytes_per_rank
from pretrain.plan.tuned import Tuned, place_of, torch_version, work_of
from pretrain.tune.candidates import Candidate
from pretrain.tune.child import Order, carry_out, measured
from pretrain.tune.subject import Subject
from pretrain.tune.trials import Failure, Measured, Row

STEP_IMAGES_MAX = 512
"""A measured step accumulates up to so many images. Where runs accumulate more, the optimizer's
share of a step is smaller yet: their rate is a little higher."""


class Bench:
    """Estimates and measures candidates.

    Args:
        subject: what is tuned.
        folder: where the config is put for the processes that measure.
        measured_seconds: for how long the steps of a candidate are timed.
        status: told what is going on.
    """

    def __init__(
        self,
        subject: Subject,
        folder: Path,
        measured_seconds: float,
        status: Callable[[str], None],
    ) -> None:
        self._subject = subject
        self._measured_seconds = measured_seconds
        self._path = folder / "config.yaml"
        self._status = status
        self._path.write_text(to_yaml(subject.config), encoding="utf-8")

    def estimate_bytes(self, candidate: Candidate) -> int:
        """Memory that the plan would say of one rank alone; 0 for what the config refuses."""
        config = self._config_of(candidate)
        if isinstance(config, Failure):
            return 0
        memory = memory_bytes_per_rank(self._subject.shape, config, candidate.micro_batch, 1)
        return sum(memory["memory"].values())

    def measure(self, candidate: Candidate, limit_seconds: float) -> Measured | Failure:
        """Measure a candidate in a process of its own, whatever becomes of that."""
        config = self._config_of(candidate)
        if isinstance(config, Failure):
            return config
        subject = self._subject
        images = candidate.micro_batch * accumulation_of(subject, candidate)
        order = Order(
            device=subject.kind,
            ranks_per_node=subject.ranks_per_node,
            parent=os.getpid(),
            config=str(self._path),
            overrides=(*candidate.overrides, f"batch.global_size={images}"),
            measured_seconds=self._measured_seconds,
            time=time.time(),
        )
        label = candidate.label(subject.space.own)
        return measured(
            carry_out(order, limit_seconds, lambda doing: self._status(f"{label}: {doing}"))
        )

    def _config_of(self, candidate: Candidate) -> RunConfig | Failure:
        try:
            return read_run(self._path, candidate.overrides)
        except ConfigError as error:
            return Failure("refused", str(error).splitlines()[0])


def accumulation_of(subject: Subject, candidate: Candidate) -> int:
    """Micro-batches of a step as it is measured."""
    images = min(subject.config.batch.global_size // subject.world_size, STEP_IMAGES_MAX)
    return max(1, images // candidate.micro_batch)


def result_of(subject: Subject, best: Row, own: Row | None) -> Tuned:
    """What is kept of a tuning.

    Args:
        subject: what was tuned.
        best: what is taken, which has a rate.
        own: what the config says, if it was tried.
    """
    outcome = best.outcome
    assert isinstance(outcome, Measured)  # noqa: S101 - for the type checker
    return Tuned(
        config=subject.name,
        settings=best.candidate.values,
        instead_of=subject.untyped,
        work=work_of(subject.config),
        device=subject.device,
        torch=torch_version(),
        place=place_of(subject.config),
        accumulation=accumulation_of(subject, best.candidate),
        images_per_second=round(best.rate, 2),
        images_per_second_before=round(own.rate, 2) if own and own.rate else None,
        peak_gib=round(outcome.peak_bytes / GIB, 3),
        device_gib=round(subject.memory_bytes / GIB, 3),
    )
