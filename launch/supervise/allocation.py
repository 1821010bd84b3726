"""The Slurm job that a supervisor lives in: its nodes, where it stands, how to bring it back."""

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch import scheduler
from launch.ledger import CRASHES, Attempt, attempt_before
from launch.supervise.decide import Failure, JobFacts
from launch.supervise.history import Traces
from launch.supervise.nodes import bad_ranks, excludable, exclude_nodes, excluded_nodes
from launch.supervise.srun import lost_nodes
from pretrain.config.schema import RunConfig
from pretrain.errors import LaunchError
from pretrain.metrics.jsonl import read_lines
from pretrain.run_directory import RunDirectory

_ENDED_BY = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ DUE TO ([A-Z ]+?)(?:,| \*\*\*)")


class Allocation:
    """What a supervisor knows of its Slurm job, and what it asks of Slurm.

    Args:
        run: the run that the job has.
        config: its config.
        job_id: Slurm's number of the job.

    Raises:
        LaunchError: Slurm does not understand its own list of nodes.
    """

    def __init__(self, run: RunDirectory, config: RunConfig, job_id: str) -> None:
        self._run = run
        self._config = config
        self._job_id = job_id
        self.nodes = scheduler.node_names(os.environ["SLURM_JOB_NODELIST"])
        self.restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))

    def facts(
        self,
        number: int,
        earlier: Sequence[Attempt],
        failure: Failure | None,
        stop_asked: Callable[[], bool],
    ) -> JobFacts:
        """Where the job stands at the end of an attempt; waits for a controller that restarts."""
        policy = self._config.cluster.requeue
        try:
            job = scheduler.patient_job_state(self._job_id, stop_asked)
        except LaunchError as error:
            return JobFacts(state=str(error), requeue=policy)
        if job is None:
            return JobFacts(state="unknown to Slurm", requeue=policy)
        before = attempt_before(earlier, job=self._job_id)
        crashed = before is not None and before.cause in (*CRASHES, "node_lost")
        named = bad_ranks(self._run, number) if failure and failure.cause == "bad_node" else []
        listed = excluded_nodes(self._run)
        return JobFacts(
            state=job.state,
            coming_back=job.restarts > self.restarts,
            said=_ended_by(number),
            preempted=job.preempted,
            seconds_left=job.seconds_left(time.time()),
            lead_seconds=self._config.cluster.signal_lead_seconds,
            lost_nodes=tuple(scheduler.unusable_nodes(self.nodes)) if failure else (),
            requeue=policy,
            bad_nodes=tuple(dict.fromkeys(item.node for item in named)),
            excluded=tuple(listed),
            excludable=self._excludable(job, listed) if failure else 0,
            culprit_before=before.culprit_node if before and crashed else None,
            never_started_before=before is not None and before.cause == "never_started",
        )

    def traces(self, attempt: Attempt) -> Traces:
        """What Slurm tells about the end of the attempt before, which may be of another job."""
        if attempt.job != self._job_id:
            return Traces()
        srun = self._run.attempt_dir(attempt.number) / "srun.log"
        said = srun.read_text(encoding="utf-8", errors="replace") if srun.exists() else ""
        lost = set(lost_nodes(said)) | set(scheduler.unusable_nodes(attempt.nodes))
        return Traces(self.restarts, _ended_by(attempt.number), tuple(sorted(lost)))

    def _excludable(self, job: scheduler.JobState, listed: Sequence[str]) -> int:
        there = scheduler.partition_nodes(job.partition)
        taken = {*listed, *scheduler.node_names(job.excluded)}
        usable = len(there - taken) if there else None
        return excludable(len(self.nodes), len(listed), usable)

    def exclude(self, nodes: Sequence[str], why: str) -> None:
        """Write down nodes that no job of this run shall take again."""
        exclude_nodes(self._run, nodes, why)

    def requeue(self) -> str | None:
        """Put the job back into the queue, off the excluded nodes.

        Slurm kills this process some seconds after, unless it leaves before.

        Returns:
            None on success, else Slurm's refusal, and the job runs on.
        """
        refusal = scheduler.requeue(self._job_id)
        if refusal is not None:
            return refusal
        excluded = excluded_nodes(self._run)
        if excluded:
            by_config = scheduler.node_names(self._config.cluster.exclude or "")
            nodes = list(dict.fromkeys([*by_config, *excluded]))
            kept_on = scheduler.exclude(self._job_id, nodes)
            if kept_on:
                print(f"Slurm does not exclude {', '.join(nodes)}: {kept_on}", flush=True)
        return None

    def resubmit(self, command: Sequence[str] | None) -> str:
        """Submit another job that goes on with the run when this one has ended.

        Jobs that wait for this one wait for the other then.

        Returns:
            Its number.

        Raises:
            LaunchError: Slurm refuses it.
        """
        from launch.submit import submit_slurm  # it imports the supervisor

        job = submit_slurm(self._run, follows=self._job_id, command=command)
        refused = scheduler.move_dependents(self._job_id, job.job_id)
        if refused:
            print(f"these jobs wait for {self._job_id} in vain: {', '.join(refused)}", flush=True)
        return job.job_id

    def warnings(self) -> list[str]:
        """What about saving may go wrong when Slurm wants the nodes back."""
        slowest = slowest_save_seconds(self._run)
        lead, kill_wait = self._config.cluster.signal_lead_seconds, scheduler.kill_wait_seconds()
        found = []
        if slowest > lead:
            found.append(
                f"a save took {slowest:.0f} s, more than the {lead} s before the time limit at "
                "which the ranks are told; give cluster.signal_lead_seconds"
            )
        if kill_wait is not None and slowest > kill_wait:
            found.append(
                f"a save took {slowest:.0f} s, more than the {kill_wait} s (KillWait) that a "
                "preemption without grace leaves: only periodic checkpoints help there "
                "(checkpoint.every_steps)"
            )
        return found


def slowest_save_seconds(run: RunDirectory) -> float:
    """The longest that writing a checkpoint has taken in this run; 0 before the first."""
    names = ("perf/save_write_seconds", "perf/save_seconds")
    lines = read_lines(run.metrics_path)
    return max((line[name] for line in lines for name in names if line.get(name)), default=0.0)


def _ended_by(number: int) -> str:
    """Why slurmd ended this job, from what it wrote into this process's own output."""
    try:
        log = Path("/proc/self/fd/1").resolve()
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    except OSError:
        return ""
    since = text.rpartition(f" attempt {number}: starting")[2]
    found = _ENDED_BY.findall(since)
    return found[-1] if found else ""
