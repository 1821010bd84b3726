"""Where a run stands, computed at the moment of asking from its files, its job and its lock."""

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from launch import scheduler
from launch.ledger import Attempt, read_attempts
from launch.submit import Job, read_job
from pretrain.errors import LaunchError
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import is_alive, lock_holder

Phase = Literal["idle", "waiting", "running", "done", "stopped", "failed", "lost"]
QUEUE_SECONDS = 15.0
"""How long an answer of Slurm's is taken as current; controllers dislike being asked often."""


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Attributes:
        phase: idle (never submitted), waiting (submitted, nothing runs yet), running, done,
            stopped (on request), failed (given up), lost (its job is gone without a word).
        detail: the phase in more words.
        job: the job that has or had it.
        attempt: the newest attempt of that job, else of any.
    """

    phase: Phase
    detail: str
    job: Job | None
    attempt: Attempt | None

    @property
    def is_active(self) -> bool:
        """Whether a job has the run, so that none must be submitted for it."""
        return self.phase in ("waiting", "running")


class Queue:
    """Slurm's answers about jobs, each asked for at most once in a while."""

    def __init__(self, seconds: float = QUEUE_SECONDS) -> None:
        self._seconds = seconds
        self._answers: dict[str, tuple[float, Attempt | None, scheduler.JobState | None]] = {}
        self._silence: str | None = None

    def ask_together(self, runs: Iterable[RunDirectory]) -> None:
        """Ask about the jobs of many runs in one question.

        Where Slurm does not answer it is not asked again: `state` says so for each.
        """
        asked: dict[str, Attempt | None] = {}
        for run in runs:
            with contextlib.suppress(OSError, LaunchError):
                job = read_job(run)
                if job is not None and job.executor == "slurm":
                    asked[job.job_id] = _newest_attempt(run)
        if not asked:
            return
        # A silent controller costs squeue many seconds, and this none.
        self._silence = scheduler.why_no_slurm()
        if self._silence is not None:
            return
        try:
            answers = scheduler.job_states(asked)
        except LaunchError as error:
            self._silence = str(error)
            return
        now = time.monotonic()
        for job_id, attempt in asked.items():
            self._answers[job_id] = (now, attempt, answers.get(job_id))

    def state(self, job_id: str, attempt: Attempt | None) -> scheduler.JobState | None:
        """The job's state; None once Slurm has forgotten it.

        Args:
            job_id: Slurm's.
            attempt: the newest in the run's ledger; a change there makes older answers doubtful.

        Raises:
            LaunchError: Slurm has never answered about this job.
        """
        asked, known, answer = self._answers.get(job_id, (None, None, None))
        fresh = asked is not None and time.monotonic() - asked < self._seconds
        if fresh and known == attempt:
            return answer
        if self._silence is not None:
            raise LaunchError(self._silence)
        try:
            answer = scheduler.job_state(job_id)
        except LaunchError:
            if asked is None:
                raise
        self._answers[job_id] = (time.monotonic(), attempt, answer)
        return answer


def look(run: RunDirectory, queue: Queue) -> Status:
    """Find out where a run stands. Writes nothing.

    Raises:
        LaunchError: it has a Slurm job and Slurm does not answer.
    """
    if not run.exists:
        return Status("idle", "not launched yet", None, None)
    job = read_job(run)
    if job is not None and job.executor == "slurm":
        return _look_in_slurm(run, job, queue)
    # Asked for before the ledger is read: what ends in between has its end written there.
    alive = job is not None and job.ticks is not None and is_alive(int(job.job_id), job.ticks)
    held = lock_holder(run) is not None
    attempt = _newest_attempt(run)
    if held:
        return Status("running", "training", job, attempt)
    if run.is_done():
        return _done(job, attempt)
    if job is None:
        return Status("idle", "not launched yet", None, attempt)
    if attempt is not None and _is_of(attempt, job) and attempt.is_final:
        return _final(job, attempt)
    if alive:
        return Status("waiting", "the job is starting, or at another run", job, attempt)
    if job.host != os.uname().nodename:
        return Status("lost", f"launched on {job.host}; look there", job, attempt)
    if attempt is None or not _is_of(attempt, job):
        return Status("lost", "its job ended before it began", job, attempt)
    return Status("lost", "its supervisor is gone without a word", job, attempt)


def job_to_wait_for(run: RunDirectory | None, queue: Queue) -> str | None:
    """The Slurm job that has a run which must be done first; None if there is nothing to wait for.

    Raises:
        LaunchError: the run is neither done nor in the hands of a Slurm job.
    """
    if run is None:
        return None
    status = look(run, queue)
    if status.phase == "done":
        return None
    if not status.is_active or status.job is None or status.job.executor != "slurm":
        raise LaunchError(
            f"--after {run.path}: expected a run that is done or that a Slurm job has, but it is "
            f"{status.phase}: {status.detail}"
        )
    return status.job.job_id


def _look_in_slurm(run: RunDirectory, job: Job, queue: Queue) -> Status:
    answer = queue.state(job.job_id, _newest_attempt(run))
    attempt = _newest_attempt(run)  # read after the answer: a job that ended has written its end
    final = attempt is not None and _is_of(attempt, job) and attempt.is_final
    if answer is not None and answer.state in scheduler.WAITING:
        start = "" if answer.start in ("", "Unknown", "N/A") else f", expected {answer.start}"
        return Status("waiting", f"{answer.state.lower()} ({answer.reason}{start})", job, attempt)
    # A stopped attempt of a job that is still ending may be followed by Slurm's own requeue.
    settled = attempt is not None and final and attempt.next != "stop"
    if answer is not None and answer.state in scheduler.RUNNING and not settled:
        return Status("running", answer.state.lower(), job, attempt)
    if run.is_done():
        return _done(job, attempt)
    other = (lock_holder(run) or {}).get("job")
    if other is not None and other != job.job_id:
        found = queue.state(str(other), attempt)
        if found is not None and found.state in scheduler.RUNNING:
            return Status("running", f"job {other} has it", job, attempt)
    if attempt is not None and final:
        return _final(job, attempt)
    if job.cancelled_time is not None or (answer and answer.state.startswith("CANCELLED")):
        return Status("stopped", f"job {job.job_id} was cancelled", job, attempt)
    state = "unknown to Slurm" if answer is None else answer.state
    return Status("lost", f"job {job.job_id} is {state}", job, attempt)


def _final(job: Job, attempt: Attempt) -> Status:
    if attempt.next == "stop":
        return Status("stopped", attempt.reason, job, attempt)
    if attempt.next == "done":
        return _done(job, attempt)
    return Status("failed", attempt.reason, job, attempt)


def _done(job: Job | None, attempt: Attempt | None) -> Status:
    reason = attempt.reason if attempt is not None and attempt.next == "done" else ""
    return Status("done", reason or "done", job, attempt)


def _newest_attempt(run: RunDirectory) -> Attempt | None:
    attempts = read_attempts(run)
    return attempts[-1] if attempts else None


def _is_of(attempt: Attempt, job: Job) -> bool:
    """Whether an attempt was made by a job; process ids recur, Slurm's numbers do not."""
    recent = job.executor == "slurm" or attempt.start_time >= job.time - 1.0
    return attempt.job == job.job_id and recent
