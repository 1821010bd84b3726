"""What the end of an attempt means and what follows from it: pure, from what was observed."""

from dataclasses import dataclass
from typing import Literal

from launch.ledger import Cause, Next, Outcome

RUNNING = "RUNNING"
TIME_LIMIT_MARGIN_SECONDS = 90.0
"""How much earlier than asked Slurm may signal a job, and some time to save."""

CAUSE_SAID: dict[str, Cause] = {
    "PREEMPTION": "preemption",
    "JOB REQUEUE": "requeued",
    "NODE FAILURE": "node_lost",
    "TIME LIMIT": "time_limit",
}
"""What slurmd writes when it ends a job, and the cause that it means."""
_IN_WORDS: dict[Cause, str] = {
    "cancelled": "the job was cancelled",
    "requeued": "Slurm is putting the job back into the queue",
    "preemption": "the job was preempted",
    "node_lost": "the job lost a node",
    "time_limit": "the time limit is near",
    "stop_signal": "the ranks were signalled",
}
NEXT_IN_WORDS: dict[Next, str] = {
    "done": "the run is done",
    "restart": "restarting",
    "requeue": "going back into Slurm's queue",
    "resubmit": "going on in another job",
    "stop": "the run is stopped",
    "give_up": "giving up",
}


@dataclass(frozen=True)
class Failure:
    """Why an attempt cannot go on.

    Attributes:
        rank: the one that failed first; None where that is not known.
        reason: what happened to it.
        cause: of what kind that is.
        node: where the rank ran, or the node that failed.
        phase: what it was at, where that is known.
    """

    rank: int | None
    reason: str
    cause: Cause = "rank_died"
    node: str | None = None
    phase: str | None = None


@dataclass(frozen=True)
class JobFacts:
    """Where the Slurm job stands at the end of an attempt.

    Attributes:
        state: Slurm's word, or why it is not known.
        coming_back: whether Slurm itself is putting the job back into the queue.
        said: what slurmd wrote when it ended the job, such as ``PREEMPTION``; empty without it.
        preempted: whether the job was told to make room while it may still run.
        seconds_left: until its time limit; None without one.
        lead_seconds: how long before the limit the ranks are told.
        lost_nodes: nodes of the job that are down or silent.
        requeue: what brings the job back (``cluster.requeue``).
        bad_nodes: nodes that the ranks named as unfit.
        excluded: nodes that are excluded already.
        excludable: how many more may be excluded, of the job's own and of the partition's nodes.
        culprit_before: node that the attempt before ended by; None where it ended by none.
        never_started_before: whether the attempt before was not launched either.
    """

    state: str = RUNNING
    coming_back: bool = False
    said: str = ""
    preempted: bool = False
    seconds_left: float | None = None
    lead_seconds: float = 0.0
    lost_nodes: tuple[str, ...] = ()
    requeue: Literal["requeue", "resubmit", "never"] = "requeue"
    bad_nodes: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    excludable: int = 0
    culprit_before: str | None = None
    never_started_before: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known once the ranks of an attempt are gone.

    Attributes:
        intent: with what rank zero left, ``done``, ``stopped``, or ``profiled`` where it was only
            to come that far; None if it did not come to that.
        intent_step: steps done then.
        failure: the first bad end of a rank, or why the supervisor ended them.
        asked: whether the supervisor was asked to stop.
        progressed: whether there is a newer checkpoint than at the start.
        vain: attempts in a row that ended badly without a newer checkpoint, before this one.
        same_step: attempts in a row that crashed at the step of this one, before it.
        last_step: that step.
        limit: how many of either are too many.
        job: where the job stands; None without Slurm.
    """

    intent: str | None = None
    intent_step: int | None = None
    failure: Failure | None = None
    asked: bool = False
    progressed: bool = False
    vain: int = 0
    same_step: int = 0
    last_step: int | None = None
    limit: int = 3
    job: JobFacts | None = None


@dataclass(frozen=True)
class Decision:
    """What the end of an attempt means.

    Attributes:
        outcome: how it ended.
        cause: why.
        next: what follows.
        reason: all of that in words.
        exclude: nodes that the run shall not have again.
    """

    outcome: Outcome
    cause: Cause
    next: Next
    reason: str
    exclude: tuple[str, ...] = ()


def decide(facts: Facts) -> Decision:
    """Find the cause of an attempt's end and what follows."""
    outcome, cause, reason = _classify(facts)
    job = facts.job
    if cause == "done":
        return Decision(outcome, cause, "done", reason)
    if cause == "bad_input":
        return Decision(outcome, cause, "give_up", reason)
    profiled = facts.intent == "profiled" and outcome == "stopped"
    if facts.asked or profiled or (job is not None and job.state != RUNNING):
        return Decision(outcome, cause, "stop", reason)
    if cause == "bad_node":
        return _without_bad_nodes(facts, reason)
    if job is not None and job.preempted and outcome == "crashed":
        # Slurm starts no more ranks in a job that must make room, though it still runs.
        return _come_back(job, outcome, "preemption", f"{reason}; {_IN_WORDS['preemption']}")
    loop = _loop(facts, outcome)
    if loop:
        return Decision(outcome, cause, "give_up", f"{reason}; {loop}")
    if job is None:
        # Nobody asked this supervisor: the ranks themselves were signalled, by a person.
        return Decision(outcome, cause, "restart" if outcome == "crashed" else "stop", reason)
    if outcome == "stopped" or cause == "node_lost":
        return _come_back(job, outcome, cause, reason)
    named = facts.failure is not None and facts.failure.node is not None
    if cause == "never_started" and (named or job.never_started_before):
        return _come_back(job, outcome, cause, reason)
    suspect = _suspect(facts, job)
    if suspect and job.excludable > 0:
        again = f"{reason}; the second crash in a row on {suspect}, which is excluded"
        return _come_back(job, outcome, cause, again, (suspect,))
    return Decision(outcome, cause, "restart", reason)


def _classify(facts: Facts) -> tuple[Outcome, Cause, str]:
    failure, job = facts.failure, facts.job
    if failure is not None and failure.cause == "bad_input":
        return "bad_input", "bad_input", f"{failure.reason} (bad input)"
    if failure is None and facts.intent == "done":
        return "done", "done", f"done at step {facts.intent_step}"
    if failure is None and facts.intent == "stopped":
        cause, why = _why_stopped(facts)
        return "stopped", cause, f"saved and stopped at step {facts.intent_step}{why}"
    if failure is None and facts.intent == "profiled":
        return "stopped", "user_stop", f"saved and stopped at step {facts.intent_step}, profiled"
    if facts.asked:
        cause, why = _why_stopped(facts)
        return "stopped", cause, f"stopped without saving{why}"
    if job is not None and job.state != RUNNING:
        cause, why = _why_stopped(facts)
        first = failure.reason if failure else "the ranks left without saving"
        return "crashed", cause, f"{first}{why}"
    if failure is None:
        return "crashed", "rank_died", "the ranks left without saying why"
    lost = job is not None and (failure.node in job.lost_nodes or failure.cause == "node_lost")
    if lost and failure.cause in ("rank_died", "rank_hung", "never_started", "node_lost"):
        return "crashed", "node_lost", failure.reason
    return "crashed", failure.cause, failure.reason


def _why_stopped(facts: Facts) -> tuple[Cause, str]:
    """The cause of a stop that no rank is to blame for, and its words, after a semicolon.

    Ranks that stopped though nobody asked this supervisor were signalled by Slurm. While the job
    still counts as running, that is the time limit or a preemption with grace, after which Slurm
    itself would call the job complete. In any other state the job was cancelled or is being
    requeued.
    """
    job = facts.job
    if job is None or (facts.asked and job.state == RUNNING):
        return "user_stop", ""
    if job.state != RUNNING:
        cause = CAUSE_SAID.get(job.said) or ("requeued" if job.coming_back else "cancelled")
    elif job.preempted:
        cause = "preemption"
    elif job.seconds_left is not None and (
        job.seconds_left <= job.lead_seconds + TIME_LIMIT_MARGIN_SECONDS
    ):
        cause = "time_limit"
    else:
        cause = "stop_signal"
    return cause, f"; {_IN_WORDS[cause]}"


def _loop(facts: Facts, outcome: Outcome) -> str:
    """Why there is no use in another attempt; empty where there may be."""
    if not facts.progressed and facts.vain + 1 >= facts.limit:
        return f"{facts.vain + 1} attempts without a newer checkpoint"
    if outcome == "crashed" and facts.same_step + 1 >= facts.limit:
        return f"{facts.same_step + 1} attempts in a row ended at step {facts.last_step}"
    return ""


def _suspect(facts: Facts, job: JobFacts) -> str | None:
    """The node on which ranks died first twice in a row; at the same step it is not the node."""
    node = facts.failure.node if facts.failure else None
    same_place = facts.same_step > 0
    return node if node and node == job.culprit_before and not same_place else None


def _without_bad_nodes(facts: Facts, reason: str) -> Decision:
    """What follows when ranks named nodes as unfit before the first step."""
    job = facts.job
    if job is None:
        return Decision("crashed", "bad_node", "give_up", f"{reason}; mend it")
    new = tuple(node for node in job.bad_nodes if node not in job.excluded)
    if not new:
        why = "the nodes named are excluded already, and Slurm gave them to the job again"
        return Decision("crashed", "bad_node", "give_up", f"{reason}; {why}")
    if len(new) > job.excludable:
        why = (
            f"{', '.join(new)} cannot be excluded: more than half of the job's nodes would be, or "
            "too few would be left in the partition; mend them, or give health.enabled=false"
        )
        return Decision("crashed", "bad_node", "give_up", f"{reason}; {why}")
    return _come_back(job, "crashed", "bad_node", reason, new)


def _come_back(
    job: JobFacts, outcome: Outcome, cause: Cause, reason: str, exclude: tuple[str, ...] = ()
) -> Decision:
    if job.requeue == "never":
        reason += "; cluster.requeue is never: run the same command to go on"
        return Decision(outcome, cause, "stop", reason, exclude)
    return Decision(outcome, cause, job.requeue, reason, exclude)
