"""How far an attempt came and what it lost, and what the next start finds out about its end."""

from collections.abc import Mapping
from typing import Any

from launch.ledger import Attempt
from launch.signs import PHASES
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


def findings(
    run: RunDirectory,
    attempt: Attempt,
    *,
    restarts: int | None,
    unusable: Mapping[str, str],
) -> dict[str, Any]:
    """What a new start knows about the attempt before it that nobody knew at its end.

    Args:
        run: the run.
        attempt: the newest, which is over.
        restarts: times that Slurm has put this job back; None without Slurm or in another job.
        unusable: nodes of that attempt that are down now, and Slurm's word for it.

    Returns:
        By the names of `Attempt`; empty where there is nothing new.
    """
    requeued = restarts is not None and restarts > (attempt.restarts or 0)
    if attempt.outcome is not None or attempt.cause is not None:
        came_back = attempt.next == "stop" and attempt.cause == "cancelled" and requeued
        return {"cause": "requeued"} if came_back else {}
    saved = run.newest_checkpoint_step()
    step = last_step(run, attempt.number)
    reason = "its supervisor was killed"
    if requeued:
        reason += f"; Slurm put the job back into the queue (restart {restarts})"
    for node, state in unusable.items():
        reason += f"; node {node} is {state}"
    lost = len(unusable) == 1
    return {
        "cause": "node_lost" if unusable else "vanished",
        "reason": reason,
        "culprit_node": next(iter(unusable)) if lost else None,
        "phase": phase_of(run, attempt.number),
        "last_step": step,
        "lost_steps": lost_steps(step, saved),
    }
