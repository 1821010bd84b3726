"""The verb ``stop``: a run saves and ends, wherever it is, and stays ended."""

import contextlib
import os
import signal
import time
from dataclasses import replace

from launch import scheduler
from launch.ledger import read_attempts
from launch.status import Queue, Status, look
from launch.submit import Job, read_job, write_job
from launch.supervise.ranks import end_leftovers
from launch.supervise.supervisor import EXIT_DONE, EXIT_FAILED
from pretrain.errors import LaunchError
from pretrain.lookup import name_for_commands, runs_below
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import is_alive, lock_holder

EXIT_INTERRUPTED = 130
LOOK_SECONDS = 0.2
QUEUE_SECONDS = 2.0
ASK_AGAIN_SECONDS = 10.0
"""A supervisor that was only starting may have missed the first signal; a second does no harm."""
NOW_SECONDS = 20.0
"""After that long a supervisor that was told to end at once is taken for dead."""
PATIENCE_SECONDS = 3600.0
"""Longest wait for a run to save and leave."""


def stop_run(run: RunDirectory, *, now: bool, wait: bool) -> int:
    """Stop a run for good: it can be resumed, but neither Slurm nor its supervisor does so.

    A running one saves first, unless ``now``; one that waits in Slurm's queue is taken out of it.

    Args:
        run: its directory.
        now: end it at once, without saving.
        wait: return when it has ended, and say what is saved.

    Returns:
        0, or 70 where it was to be saved and was not, 130 on Ctrl-C, after which it still stops.

    Raises:
        LaunchError: it cannot be reached from here, shares its job with a run that has its turn,
            or does not end.
    """
    name = run.path.name
    status = look(run, Queue(seconds=0))
    if not status.is_active:
        print(f"{name}: not active; {_ended(status)}")
        return EXIT_DONE
    _check_turn(run, status)
    _ask(run, status, now=now)
    if status.phase == "waiting":
        print(f"{name}: being taken out of the queue", flush=True)
    else:
        print(f"{name}: asked to {'end at once' if now else 'save and stop'}", flush=True)
    if not wait:
        _note_cancelled(run, look(run, Queue(seconds=0)))
        return EXIT_DONE
    try:
        status = _wait(run, now=now)
    except KeyboardInterrupt:
        print(f"{name}: no longer waited for; it stops all the same")
        return EXIT_INTERRUPTED
    return _report(run, _note_cancelled(run, status), now=now)


def stop_local(run: RunDirectory, status: Status, *, now: bool) -> bool:
    """Ask the supervisor of a local run to save and stop, or to end at once.

    Returns:
        Whether there was somebody to ask.
    """
    holder = lock_holder(run) or {}
    if holder.get("host") == os.uname().nodename and is_alive(holder["pid"], holder["ticks"]):
        os.kill(holder["pid"], signal.SIGQUIT if now else signal.SIGTERM)
        return True
    job = status.job
    if job is not None and job.ticks is not None and is_alive(int(job.job_id), job.ticks):
        os.kill(int(job.job_id), signal.SIGTERM)
        return True
    return False


def _check_turn(run: RunDirectory, status: Status) -> None:
    """Refuse to stop a run by stopping another one, which has its turn in the same local job."""
    if status.phase != "waiting" or status.job is None or status.job.executor == "slurm":
        return
    for other in runs_below(run.path.parent)[0]:
        if other.path != run.path and lock_holder(other) and _job_of(other) == status.job:
            raise LaunchError(
                f"{run.path.name}: waits for its turn in the job of {other.path.name}; stop that "
                f"one (python launch/runs.py stop "
                f"{name_for_commands(other)}), and this one does not begin"
            )


def _job_of(run: RunDirectory) -> Job | None:
    try:
        return read_job(run)
    except (LaunchError, OSError):
        return None


def _ask(run: RunDirectory, status: Status, *, now: bool) -> None:
    job = status.job
    if job is not None and job.executor == "slurm":
        if status.phase == "waiting":
            scheduler.cancel_pending(job.job_id)
        else:
            scheduler.signal_batch(job.job_id, "QUIT" if now else "TERM")
        return
    if stop_local(run, status, now=now):
        return
    host = (lock_holder(run) or {}).get("host", os.uname().nodename)
    if host != os.uname().nodename:
        raise LaunchError(f"{run.path.name}: runs on {host}; stop it there")


def _wait(run: RunDirectory, *, now: bool) -> Status:
    """Wait for the end, asking again and in the end insisting."""
    queue = Queue(seconds=QUEUE_SECONDS)
    begun = asked = time.monotonic()
    insisted = False
    while True:
        status = look(run, queue)
        if not status.is_active:
            return status
        waited = time.monotonic() - begun
        if waited > PATIENCE_SECONDS:
            raise LaunchError(
                f"{run.path.name}: still {status.detail} after {waited / 60:.0f} minutes; "
                "give --now to end it without saving"
            )
        if now and waited > NOW_SECONDS and not insisted:
            insisted = True
            _insist(run, status)
        elif time.monotonic() - asked > ASK_AGAIN_SECONDS:
            asked = time.monotonic()
            with contextlib.suppress(LaunchError):  # a controller may be away for a while
                _ask(run, status, now=now)
        time.sleep(LOOK_SECONDS)


def _insist(run: RunDirectory, status: Status) -> None:
    """End a run whose supervisor does not answer."""
    job = status.job
    if job is not None and job.executor == "slurm":
        scheduler.cancel(job.job_id)
        return
    holder = lock_holder(run) or {}
    if holder.get("host") == os.uname().nodename and is_alive(holder["pid"], holder["ticks"]):
        os.kill(holder["pid"], signal.SIGKILL)
    if job is not None and job.ticks is not None and is_alive(int(job.job_id), job.ticks):
        os.kill(int(job.job_id), signal.SIGKILL)
    attempts = read_attempts(run)
    if attempts and attempts[-1].outcome is None:
        end_leftovers(attempts[-1].ranks, patience_seconds=0.0)


def _note_cancelled(run: RunDirectory, status: Status) -> Status:
    """Keep on record that a job was taken out of the queue: Slurm forgets it in minutes."""
    job = status.job
    if job is None or job.executor != "slurm" or status.phase not in ("stopped", "lost"):
        return status
    newest = status.attempt
    if (
        newest is not None
        and newest.job == job.job_id
        and newest.next not in ("requeue", "resubmit")
    ):
        return status  # the ledger tells more
    write_job(run, replace(job, cancelled_time=time.time()))
    return look(run, Queue(seconds=0))


def _report(run: RunDirectory, status: Status, *, now: bool) -> int:
    name = run.path.name
    print(f"{name}: {_ended(status)}")
    if status.phase == "done":
        return EXIT_DONE
    saved = run.newest_checkpoint_step() or 0
    lost = max(0, ((run.read_progress() or {}).get("step") or 0) - saved)
    where = f"saved at step {saved:,}" if saved else "nothing is saved"
    print(f"{name}: {where}; {f'{lost:,} steps are' if lost else 'nothing is'} to be done again")
    print(f"resume: python launch/runs.py resume {name_for_commands(run)}")
    return EXIT_DONE if now or not lost else EXIT_FAILED


def _ended(status: Status) -> str:
    repeated = status.detail.startswith(status.phase)
    return status.detail if repeated else f"{status.phase}: {status.detail}"
