"""The ledger of a run: which attempts were made, how each ended, and whether it moved forward."""

import json
import os
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from pretrain.run_directory import RunDirectory

Outcome = Literal["done", "stopped", "crashed", "bad_input"]
Next = Literal["done", "restart", "requeue", "stop", "give_up"]


@dataclass(frozen=True)
class Attempt:
    """One life of a run, from starting its ranks to their end.

    Attributes:
        number: counts from 1.
        job: the job that made it.
        host: where its supervisor ran.
        start_time: unix seconds.
        checkpoint_step_before: newest checkpoint at its start, None without one.
        ranks: (process id, start time in clock ticks) of each local rank; empty under Slurm.
        outcome: how it ended; None while it runs, or for ever if its supervisor was killed.
        checkpoint_step_after: newest checkpoint at its end.
        reason: the end in words.
        culprit_rank: the rank that failed first, where one did.
        next: what the supervisor went on to do.
    """

    number: int
    job: str
    host: str
    start_time: float
    checkpoint_step_before: int | None
    ranks: tuple[tuple[int, int], ...] = ()
    outcome: Outcome | None = None
    checkpoint_step_after: int | None = None
    reason: str = ""
    culprit_rank: int | None = None
    next: Next | None = None

    @property
    def is_final(self) -> bool:
        """Whether its job went no further with this run."""
        return self.next in ("done", "stop", "give_up")

    @property
    def ended_badly(self) -> bool:
        """Whether it crashed, vanished, or was cut off and put back into the queue."""
        return self.outcome in (None, "crashed", "bad_input") or self.next == "requeue"


def read_attempts(run: RunDirectory) -> list[Attempt]:
    """All attempts in order; lines torn by a kill are passed over."""
    try:
        lines = run.attempts_path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    attempts: dict[int, Attempt] = {}
    for line in lines:
        try:
            record = json.loads(line)
            number = int(record.pop("attempt"))
            event = record.pop("event")
            stamp = record.pop("time")
            if event == "start":
                attempts[number] = Attempt(number=number, start_time=stamp, **record)
            elif event == "ranks":
                pairs = tuple((int(pid), int(ticks)) for pid, ticks in record["ranks"])
                attempts[number] = replace(attempts[number], ranks=pairs)
            elif event == "end":
                attempts[number] = replace(attempts[number], **record)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return list(attempts.values())


def append_start(
    run: RunDirectory, number: int, *, job: str, host: str, checkpoint_step: int | None
) -> None:
    """Record that an attempt begins, before any rank exists."""
    record = {"job": job, "host": host, "checkpoint_step_before": checkpoint_step}
    _append(run, {"event": "start", "attempt": number, "time": time.time(), **record})


def append_ranks(run: RunDirectory, number: int, ranks: list[tuple[int, int]]) -> None:
    """Record the processes of an attempt, so that a later supervisor can end what is left."""
    _append(run, {"event": "ranks", "attempt": number, "time": time.time(), "ranks": ranks})


def append_end(
    run: RunDirectory,
    number: int,
    *,
    outcome: Outcome,
    next_action: Next,
    checkpoint_step: int | None,
    reason: str,
    culprit_rank: int | None,
) -> None:
    """Record how an attempt ended and what follows."""
    record = {
        "outcome": outcome,
        "next": next_action,
        "checkpoint_step_after": checkpoint_step,
        "reason": reason,
        "culprit_rank": culprit_rank,
    }
    _append(run, {"event": "end", "attempt": number, "time": time.time(), **record})


def attempts_without_progress(
    attempts: list[Attempt], *, job: str, checkpoint_step: int | None
) -> int:
    """Newest attempts in a row, of this job, that ended badly and left no newer checkpoint.

    Args:
        attempts: the ledger, none of them running.
        job: a job submitted anew starts a new count; a requeued one does not.
        checkpoint_step: newest checkpoint now; stands in for the end an attempt did not record.
    """
    count = 0
    after = checkpoint_step
    for attempt in reversed(attempts):
        if attempt.job != job or not attempt.ended_badly:
            break
        if attempt.outcome is not None:
            after = attempt.checkpoint_step_after
        if (-1 if after is None else after) > (
            -1 if attempt.checkpoint_step_before is None else attempt.checkpoint_step_before
        ):
            break
        count += 1
        after = attempt.checkpoint_step_before
    return count


def _append(run: RunDirectory, record: dict[str, Any]) -> None:
    path = run.attempts_path
    written = path.read_bytes() if path.exists() else b""
    torn = bool(written) and not written.endswith(b"\n")
    line = ("\n" if torn else "") + json.dumps(record) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
