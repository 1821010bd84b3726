"""Why a run ended or does not move, and what to do next, from its files and its job."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.ledger import Attempt, Cause, read_attempts
from launch.look_after.logs import log_tail
from launch.status import Phase, Queue, look
from launch.supervise.hang import innermost, read_stack
from launch.supervise.history import last_step, lost_steps, phase_of
from launch.supervise.nodes import excluded
from pretrain.files import read_json
from pretrain.run_directory import RunDirectory

DETAIL_LINES = 12
"""Of the culprit's log."""
EARLIER_SHOWN = 5
IN_WORDS: dict[Cause, str] = {
    "done": "it is done",
    "user_stop": "somebody asked it to stop",
    "cancelled": "its job was cancelled",
    "time_limit": "the time limit of its job came near",
    "preemption": "its job was preempted",
    "requeued": "its job was put back into the queue",
    "stop_signal": "its ranks got a signal to stop",
    "rank_died": "a rank died",
    "rank_hung": "a rank no longer moved",
    "node_lost": "a node was lost",
    "bad_node": "a node is unfit",
    "never_started": "the ranks did not start",
    "bad_input": "the input was refused",
    "storage": "a disk did not take a checkpoint",
    "diverged_ranks": "ranks computed with different weights",
    "no_progress": "attempts ended without a newer checkpoint",
    "vanished": "its supervisor was killed without a word",
}


@dataclass(frozen=True)
class Explanation:
    """Why a run is where it is.

    Attributes:
        run: its name.
        state: as `launch.status.Status.phase`.
        cause: why its newest attempt ended; None while it runs, and before the first.
        rank: the rank at fault, where one is.
        node: the node at fault, or that of the rank.
        phase: what it was, or is, at.
        last_step: steps done.
        saved_step: steps done in the newest checkpoint; None without one.
        lost_steps: steps done that no checkpoint holds; None where nothing is known.
        next_action: what to do, as a command where there is one.
        log: where to read on; None before there is anything.
        details: lines that tell more: the reason, earlier attempts, the culprit's stack and log.
    """

    run: str
    state: Phase
    cause: Cause | None
    rank: int | None
    node: str | None
    phase: str | None
    last_step: int | None
    saved_step: int | None
    lost_steps: int | None
    next_action: str
    log: Path | None
    details: tuple[str, ...]


def explain(run: RunDirectory) -> Explanation:
    """Find out why a run is where it is. Writes nothing.

    Raises:
        LaunchError: it has a Slurm job and Slurm does not answer.
    """
    status = look(run, Queue())
    return explain_attempt(run, status.phase, read_attempts(run), status.detail)


def explain_attempt(
    run: RunDirectory, state: Phase, attempts: Sequence[Attempt], detail: str = ""
) -> Explanation:
    """Explain a run whose state is known.

    Args:
        run: its directory.
        state: where it stands.
        attempts: its ledger.
        detail: the state in more words.
    """
    newest = attempts[-1] if attempts else None
    running = newest is not None and newest.outcome is None and state == "running"
    saved = run.newest_checkpoint_step()
    step = None if newest is None else newest.last_step
    if newest is not None and step is None:
        step = last_step(run, newest.number)
    cause = None if newest is None or running else newest.cause or _unrecorded(newest)
    return Explanation(
        run=run.path.name,
        state=state,
        cause=cause,
        rank=newest.culprit_rank if newest else None,
        node=newest.culprit_node if newest else None,
        phase=(newest.phase or phase_of(run, newest.number)) if newest else None,
        last_step=step,
        saved_step=saved,
        lost_steps=None if running else lost_steps(step, saved),
        next_action=_next_action(run, state, cause),
        log=_log(run, newest),
        details=tuple(_details(run, newest, attempts, detail, running=running)),
    )


def text(explanation: Explanation) -> str:
    """An explanation for people, without a newline at its end."""
    lines = [f"{explanation.run}: {explanation.state}{_because(explanation)}"]
    culprit = [
        f"{name} {value}"
        for name, value in (("rank", explanation.rank), ("node", explanation.node))
        if value is not None
    ]
    if culprit:
        lines.append(f"culprit: {' on '.join(culprit)}")
    if explanation.phase is not None:
        lines.append(f"phase: {explanation.phase}")
    if explanation.last_step is not None:
        saved = explanation.saved_step
        where = "no checkpoint" if saved is None else f"newest checkpoint {saved:,}"
        lost = explanation.lost_steps
        words = "" if lost is None else f", {lost:,} steps lost"
        lines.append(f"last step: {explanation.last_step:,} ({where}{words})")
    lines += explanation.details
    if explanation.log is not None:
        lines.append(f"log: {explanation.log}")
    lines.append(f"next: {explanation.next_action}")
    return "\n".join(lines)


def _because(explanation: Explanation) -> str:
    if explanation.state == "running":
        return ", nothing is wrong" if explanation.cause is None else ""
    if explanation.cause is None or explanation.state == "done":
        return ""
    return f": {IN_WORDS[explanation.cause]} ({explanation.cause})"


def _unrecorded(attempt: Attempt) -> Cause | None:
    """The cause of an attempt that recorded none: an older ledger, or a killed supervisor."""
    older: dict[str | None, Cause] = {
        None: "vanished",
        "done": "done",
        "bad_input": "bad_input",
        "crashed": "rank_died",
        "stopped": "stop_signal",
    }
    return older[attempt.outcome]


def _next_action(run: RunDirectory, state: Phase, cause: Cause | None) -> str:
    again = _launch_command(run)
    if state == "running":
        return f"nothing; watch it with {again} --follow"
    if state == "waiting":
        return f"nothing, it starts by itself; watch it with {again} --follow"
    if state == "done":
        return f"nothing; it left {run.export_dir if run.export_dir.exists() else run.path}"
    if cause == "bad_input":
        return f"mend what is named above, then {again}"
    if cause == "bad_node":
        return f"have the node mended, or leave it out (cluster.exclude=NODE), then {again}"
    if cause == "storage":
        return f"make room, or mend the disk, then {again}"
    if state == "failed":
        return f"find the cause in the log and mend it, then {again}"
    return again


def _launch_command(run: RunDirectory) -> str:
    """The command that launched the run: typed again it goes on."""
    command = (read_json(run.environment_path) or {}).get("command")
    if not isinstance(command, list) or not command:
        return f"python launch/slurm.py --config {shlex.quote(run.path.name)}"
    return shlex.join(str(word) for word in command if word not in ("--follow", "--no-follow"))


def _log(run: RunDirectory, attempt: Attempt | None) -> Path | None:
    if attempt is None:
        return None
    own = run.rank_log(attempt.number, attempt.culprit_rank or 0)
    return own if own.exists() else run.attempt_dir(attempt.number) / "supervisor.log"


def _details(
    run: RunDirectory,
    newest: Attempt | None,
    attempts: Sequence[Attempt],
    detail: str,
    *,
    running: bool,
) -> list[str]:
    lines = [detail] if detail and (newest is None or detail != newest.reason) else []
    earlier = [attempt for attempt in attempts if attempt is not newest or not running]
    left_out = len(earlier) - EARLIER_SHOWN
    if left_out > 0:
        lines.append(f"{left_out} earlier attempts are in {run.attempts_path}")
    lines += [_line(attempt) for attempt in earlier[-EARLIER_SHOWN:]]
    lines += [f"excluded: {item.node} ({item.why})" for item in excluded(run)]
    if newest is not None and not running and newest.outcome in ("crashed", "bad_input"):
        lines += _evidence(run, newest)
    return lines


def _line(attempt: Attempt) -> str:
    cause = attempt.cause or _unrecorded(attempt)
    step = "" if attempt.last_step is None else f" at step {attempt.last_step:,}"
    lost = f", {attempt.lost_steps:,} steps lost" if attempt.lost_steps else ""
    reason = f": {attempt.reason}" if attempt.reason else ""
    return f"attempt {attempt.number}: {cause}{step}{lost}{reason}"


def _evidence(run: RunDirectory, attempt: Attempt) -> list[str]:
    """The culprit's innermost frames and the end of its log."""
    rank = attempt.culprit_rank
    if rank is None:
        return []
    lines = []
    path = run.stacks_path(attempt.number, rank)
    if path.exists():
        stack = read_stack(path.read_text(encoding="utf-8", errors="replace"))
        frames = innermost(stack) if stack else ()
        lines += [f"rank {rank} stood at", *(f"  {frame}" for frame in frames)] if frames else []
    tail = log_tail(run.rank_log(attempt.number, rank), DETAIL_LINES)
    if tail:
        lines += [f"rank {rank} said last", *(f"  {line}" for line in tail)]
    return lines
