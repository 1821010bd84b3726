"""How far an attempt came and what it lost, and what the next start finds out about its end."""

from dataclasses import dataclass
from typing import Any

from launch.ledger import Attempt, Cause
from launch.supervise.decide import CAUSE_SAID
from launch.supervise.signs import PHASES
from pretrain.run_directory import RunDirectory


def last_step(run: RunDirectory, number: int) -> int | None:
    """Steps done in an attempt as far as anybody wrote it down; None if it came to none."""
    outcome = run.read_outcome(number) or {}
    progress = run.read_progress() or {}
    found = [outcome.get("step")]
    if progress.get("attempt") == number:
        found.append(progress.get("step"))
    return max((step for step in found if isinstance(step, int)), default=None)


def phase_of(run: RunDirectory, number: int) -> str | None:
    """What an attempt was at by its progress; None if it wrote none."""
    progress = run.read_progress() or {}
    return PHASES.get(str(progress.get("state"))) if progress.get("attempt") == number else None


def lost_steps(step: int | None, saved_step: int | None) -> int | None:
    """Steps done that no checkpoint holds; None where no step is known."""
    return None if step is None else max(0, step - (saved_step or 0))


@dataclass(frozen=True)
class Traces:
    """What Slurm tells, at the next start, about the end of an attempt.

    Attributes:
        restarts: times that it has put the job back by now; None without Slurm or in another job.
        said: what slurmd wrote when it ended the job, such as ``NODE FAILURE``; empty without it.
        lost_nodes: nodes that failed under the attempt, or are down now.
    """

    restarts: int | None = None
    said: str = ""
    lost_nodes: tuple[str, ...] = ()


def findings(run: RunDirectory, attempt: Attempt, traces: Traces) -> dict[str, Any]:
    """What a new start knows about the attempt before it that nobody knew at its end.

    Returns:
        By the names of `Attempt`; empty where there is nothing new.
    """
    requeued = traces.restarts is not None and traces.restarts > (attempt.restarts or 0)
    if attempt.outcome is not None or attempt.cause is not None:
        came_back = attempt.next == "stop" and attempt.cause == "cancelled" and requeued
        return {"cause": "requeued"} if came_back else {}
    step = last_step(run, attempt.number)
    cause: Cause = CAUSE_SAID.get(traces.said, "node_lost" if traces.lost_nodes else "vanished")
    reason = "its supervisor was killed"
    if traces.said:
        reason += f" (slurmd: {traces.said.lower()})"
    if requeued:
        reason += f"; Slurm put the job back into the queue (restart {traces.restarts})"
    if traces.lost_nodes:
        reason += f"; lost {', '.join(traces.lost_nodes)}"
    return {
        "cause": cause,
        "reason": reason,
        "culprit_node": traces.lost_nodes[0] if len(traces.lost_nodes) == 1 else None,
        "phase": phase_of(run, attempt.number),
        "last_step": step,
        "lost_steps": lost_steps(step, run.newest_checkpoint_step()),
    }
