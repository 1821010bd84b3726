"""The ledger of a run: which attempts were made, how each ended, and whether it moved forward."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pretrain.files import append_line
from pretrain.run_directory import RunDirectory

Outcome = Literal["done", "stopped", "crashed", "bad_input"]
Next = Literal["done", "restart", "requeue", "resubmit", "stop", "give_up"]
Cause = Literal[
    "done",
    "user_stop",
    "cancelled",
    "time_limit",
    "preemption",
    "requeued",
    "stop_signal",
    "rank_died",
    "rank_hung",
    "node_lost",
    "bad_node",
    "never_started",
    "bad_input",
    "storage",
    "diverged_ranks",
    "no_progress",
    "vanished",
]
"""Why an attempt ended: `supervise.decide` settles it, or `supervise.history` at the next start."""

CRASHES = ("rank_died", "rank_hung", "storage", "diverged_ranks")
"""Causes that lie in the training itself or in the node it ran on."""


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
        nodes: where its ranks ran, in the order of ranks; empty where not known.
        restarts: times that Slurm had put the job back into the queue; None without Slurm.
        outcome: how it ended; None while it runs, or for ever if its supervisor was killed.
        cause: why it ended; None while it runs, and in ledgers of older versions.
        checkpoint_step_after: newest checkpoint at its end.
        reason: the end in words.
        culprit_rank: the rank that failed first, where one did.
        culprit_node: the node that failed or held that rank.
        phase: what the run, or the culprit, was at: launch, join, start, data, step, evaluation,
            save.
        last_step: steps done, as far as anybody wrote it down.
        lost_steps: those of them that are in no checkpoint.
        end_time: unix seconds.
        next: what the supervisor went on to do.
    """

    number: int
    job: str
    host: str
    start_time: float
    checkpoint_step_before: int | None
    ranks: tuple[tuple[int, int], ...] = ()
    nodes: tuple[str, ...] = ()
    restarts: int | None = None
    outcome: Outcome | None = None
    cause: Cause | None = None
    checkpoint_step_after: int | None = None
    reason: str = ""
    culprit_rank: int | None = None
    culprit_node: str | None = None
    phase: str | None = None
    last_step: int | None = None
    lost_steps: int | None = None
    end_time: float | None = None
    next: Next | None = None

    @property
    def is_final(self) -> bool:
        """Whether its job went no further with this run."""
        return self.next in ("done", "stop", "give_up")

    @property
    def ended_badly(self) -> bool:
        """Whether it crashed, vanished, or was cut off and put back into the queue."""
        cut_off = self.next in ("requeue", "resubmit")
        return self.outcome in (None, "crashed", "bad_input") or cut_off


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
            if "nodes" in record:
                record["nodes"] = tuple(map(str, record["nodes"]))
            if event == "start":
                attempts[number] = Attempt(number=number, start_time=stamp, **record)
            elif event == "ranks":
                pairs = tuple((int(pid), int(ticks)) for pid, ticks in record["ranks"])
                attempts[number] = replace(attempts[number], ranks=pairs)
            elif event == "end":
                attempts[number] = replace(attempts[number], end_time=stamp, **record)
            elif event == "finding":
                attempts[number] = replace(attempts[number], **record)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return list(attempts.values())


def append_start(
    run: RunDirectory,
    number: int,
    *,
    job: str,
    host: str,
    checkpoint_step: int | None,
    nodes: Sequence[str] = (),
    restarts: int | None = None,
) -> None:
    """Record that an attempt begins, before any rank exists."""
    record = {"job": job, "host": host, "checkpoint_step_before": checkpoint_step}
    record |= {"nodes": list(nodes), "restarts": restarts}
    _append(run, number, "start", record)
    tell(
        run, number, "attempt_started", job=job, nodes=list(nodes), checkpoint_step=checkpoint_step
    )


def append_ranks(run: RunDirectory, number: int, ranks: list[tuple[int, int]]) -> None:
    """Record the processes of an attempt, so that a later supervisor can end what is left."""
    _append(run, number, "ranks", {"ranks": ranks})


def append_end(
    run: RunDirectory,
    number: int,
    *,
    outcome: Outcome,
    next_action: Next,
    checkpoint_step: int | None,
    reason: str,
    culprit_rank: int | None,
    cause: Cause | None = None,
    culprit_node: str | None = None,
    phase: str | None = None,
    last_step: int | None = None,
    lost_steps: int | None = None,
) -> None:
    """Record how an attempt ended and what follows; the names are those of `Attempt`."""
    record = {
        "outcome": outcome,
        "cause": cause,
        "next": next_action,
        "reason": reason,
        "checkpoint_step_after": checkpoint_step,
        "culprit_rank": culprit_rank,
        "culprit_node": culprit_node,
        "phase": phase,
        "last_step": last_step,
        "lost_steps": lost_steps,
    }
    _append(run, number, "end", record)
    tell(run, number, "attempt_ended", **record)


def append_finding(run: RunDirectory, number: int, **found: Any) -> None:
    """Record what became clear about an attempt after its end, by the names of `Attempt`."""
    _append(run, number, "finding", found)
    tell(run, number, "attempt_explained", **found)


def tell(run: RunDirectory, number: int, event: str, **fields: Any) -> None:
    """Write an event of an attempt; while its ranks live, rank zero alone may write there."""
    append_line(run.events_path, _stamp(number, event, fields))


def attempts_without_progress(
    attempts: Sequence[Attempt], *, job: str, checkpoint_step: int | None
) -> int:
    """Newest attempts in a row, of this job, that ended badly and left no newer checkpoint.

    One that ended for a bad node is not counted: the next goes without that node. Nor is one that
    Slurm itself took off its nodes: that says nothing about the run.

    Args:
        attempts: the ledger, none of them running.
        job: a job submitted anew starts a new count; one that was requeued, or that its supervisor
            submitted to go on, does not.
        checkpoint_step: newest checkpoint now; stands in for the end an attempt did not record.
    """
    count = 0
    after = checkpoint_step
    for attempt in _of_job(attempts, job):
        if not attempt.ended_badly:
            break
        if attempt.outcome is not None:
            after = attempt.checkpoint_step_after
        if (-1 if after is None else after) > (
            -1 if attempt.checkpoint_step_before is None else attempt.checkpoint_step_before
        ):
            break
        count += attempt.cause not in ("bad_node", "preemption", "requeued")
        after = attempt.checkpoint_step_before
    return count


def crashes_at_step(attempts: Sequence[Attempt], *, job: str, step: int | None) -> int:
    """Newest attempts in a row, of this job, that crashed at the same step.

    Args:
        attempts: the ledger, none of them running.
        job: as in `attempts_without_progress`.
        step: steps done; None, where it is not known, is the same as nothing.
    """
    count = 0
    for attempt in _of_job(attempts, job):
        if step is None or attempt.cause not in CRASHES or attempt.last_step != step:
            break
        count += 1
    return count


def attempt_before(attempts: Sequence[Attempt], *, job: str) -> Attempt | None:
    """The newest attempt of this job, or of the one it was submitted to follow."""
    return next(iter(_of_job(attempts, job)), None)


def _of_job(attempts: Sequence[Attempt], job: str) -> list[Attempt]:
    """The newest attempts, newest first, of this job and of those it was submitted to follow."""
    found: list[Attempt] = []
    for attempt in reversed(attempts):
        if attempt.job != job:
            if attempt.next != "resubmit":
                break
            job = attempt.job
        found.append(attempt)
    return found


def _append(run: RunDirectory, number: int, event: str, record: dict[str, Any]) -> None:
    stamp = {"event": event, "attempt": number, "time": time.time()}
    append_line(run.attempts_path, stamp | record)


def _stamp(number: int, event: str, fields: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in fields.items() if value is not None}
    return {"time": round(time.time(), 3), "attempt": number, "event": event, **known}
