"""All that the files of a run tell at one moment, whatever state they are in. Writes nothing."""

import json
import math
import os
import pwd
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import ValidationError

from launch.ledger import Attempt, Next, read_attempts
from launch.status import Phase, Queue, Status, look
from launch.submit import read_job
from pretrain.config.schema import RunConfig
from pretrain.errors import LaunchError, PretrainError
from pretrain.files import read_json
from pretrain.run_directory import RunDirectory

State = Phase | Literal["unknown", "broken"]
Found = TypeVar("Found")

NOT_READABLE = "not all of it may be read"
# yaml's own loader takes ten times as long, and a directory may hold hundreds of runs.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Standing:
    """Where a run stands, in numbers; None is for what is not known.

    Attributes:
        name: of the run and its directory.
        path: of the directory.
        state: a `Phase`; unknown where Slurm does not answer, broken where the files do not tell.
        detail: the state in more words.
        doing: what training says it does, such as ``evaluating``.
        problems: what is wrong with the directory, one line each.
        executor: ``local`` or ``slurm``.
        job: id of the job that has or had it.
        nodes: names of the machines it runs on, or ran on last.
        launched_time: when it was launched last, unix seconds.
        step: optimizer steps done.
        total_steps: of the whole run.
        epoch: passes over the data done.
        epochs: of the whole run.
        eta_seconds: time to the end, evaluations and saves counted; only of a running one.
        images_per_second: over all ranks.
        images_per_second_per_device: of one.
        data_wait_fraction: of the training time, waiting for images.
        loss: of training, newest.
        accuracy_fraction: on the training images, newest.
        eval_top1_fraction: newest on the held-out images.
        probe_top1_fraction: newest on the probe.
        progress_age_seconds: since training last said anything.
        attempts: made so far.
        checkpoint_step: of the newest checkpoint.
        checkpoint_age_seconds: since it was complete.
        unsaved_steps: done since then, to be done again if the run were cut off now.
        unsaved_seconds: what those take at the present speed.
    """

    name: str
    path: str
    state: State
    detail: str
    doing: str | None
    problems: tuple[str, ...]
    executor: str | None
    job: str | None
    nodes: tuple[str, ...]
    launched_time: float | None
    step: int | None
    total_steps: int | None
    epoch: float | None
    epochs: float | None
    eta_seconds: float | None
    images_per_second: float | None
    images_per_second_per_device: float | None
    data_wait_fraction: float | None
    loss: float | None
    accuracy_fraction: float | None
    eval_top1_fraction: float | None
    probe_top1_fraction: float | None
    progress_age_seconds: float | None
    attempts: int
    checkpoint_step: int | None
    checkpoint_age_seconds: float | None
    unsaved_steps: int | None
    unsaved_seconds: float | None

    @property
    def is_active(self) -> bool:
        """Whether a job has the run, as far as is known."""
        return self.state in ("waiting", "running")


def standing_of(run: RunDirectory, queue: Queue, *, now: float) -> Standing:
    """Look at a run; what cannot be read becomes a problem, never an error.

    Args:
        run: its directory, which may be gone.
        queue: where Slurm is asked, if it has to be.
        now: unix seconds.
    """
    problems: list[str] = []
    state, detail, status = _state(run, queue, problems)
    job = (status.job if status else None) or _try(problems, lambda: read_job(run), None)
    attempts = _try(problems, lambda: _attempts(run, problems), [])
    progress = _try(problems, lambda: _object(run.progress_path, problems), {})
    plan = _try(problems, lambda: _plan(run, problems), {})
    newest = attempts[-1] if attempts else None
    # What an attempt before this one said of its speed and its end holds no more.
    current = newest is None or progress.get("attempt") == newest.number
    step = _whole(progress, "step")
    checkpoint_step, saved_time = _try(problems, lambda: _checkpoint(run), (None, None))
    unsaved = max(0, step - (checkpoint_step or 0)) if step and state != "done" else None
    speed = _number(progress, "images_per_second")
    batch = _number(plan, "global_batch")
    age = _age(_number(progress, "time"), now)
    training = state == "running" and current
    return Standing(
        name=run.path.name,
        path=str(run.path),
        state=state,
        detail=detail,
        doing=str(progress["state"]) if training and "state" in progress else None,
        problems=tuple(dict.fromkeys(problems)),
        executor=job.executor if job else None,
        job=job.job_id if job else None,
        nodes=(newest.nodes or (newest.host,)) if newest else (),
        launched_time=_try(problems, lambda: _launched_time(run), None),
        step=step,
        total_steps=_whole(progress, "total_steps") or _whole(plan, "total_steps"),
        epoch=_number(progress, "epoch"),
        epochs=_number(progress, "epochs"),
        eta_seconds=_eta(progress, age) if training else None,
        images_per_second=speed,
        images_per_second_per_device=_number(progress, "images_per_second_per_device"),
        data_wait_fraction=_number(progress, "data_wait_fraction"),
        loss=_number(progress, "loss"),
        accuracy_fraction=_number(progress, "accuracy_fraction"),
        eval_top1_fraction=_number(progress, "eval_top1_fraction"),
        probe_top1_fraction=_number(progress, "probe_top1_fraction"),
        progress_age_seconds=age,
        attempts=len(attempts),
        checkpoint_step=checkpoint_step,
        checkpoint_age_seconds=_age(saved_time, now),
        unsaved_steps=unsaved,
        unsaved_seconds=unsaved * batch / speed
        if unsaved is not None and batch and speed
        else None,
    )


def attempt_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """The attempts of a run for scripts: every field of the ledger but the process ids."""
    rows = []
    for attempt in _try([], lambda: _attempts(run, []), []):
        row = {key: value for key, value in vars(attempt).items() if key != "ranks"}
        rows.append({"attempt": row.pop("number"), **row})
    return rows


def disk_bytes(path: Path) -> int:
    """Bytes that a file or a directory takes on the disk, links not followed.

    What vanishes meanwhile or may not be looked at counts nothing.
    """
    try:
        total = path.lstat().st_blocks * 512
        if path.is_symlink() or not path.is_dir():
            return total
        return total + sum(disk_bytes(Path(entry.path)) for entry in os.scandir(path))
    except OSError:
        return 0


def _state(
    run: RunDirectory, queue: Queue, problems: list[str]
) -> tuple[State, str, Status | None]:
    try:
        owner = run.path.stat().st_uid
        if owner != os.getuid():
            problems.append(f"belongs to {_user(owner)}")
        if not run.exists:
            problems.append("config.yaml: missing: its launch did not come to an end")
            return "broken", "no config.yaml", None
        status = look(run, queue)
    except PermissionError:
        problems.append(NOT_READABLE)
        return "unknown", "may not be read", None
    except OSError as error:
        problems.append(f"{Path(error.filename or run.path).name}: {error.strerror}")
        return "broken", (error.strerror or "cannot be read").lower(), None
    except LaunchError as error:
        damaged = str(error).startswith(str(run.path))
        problems.extend([str(error)] if damaged else [])
        return "broken" if damaged else "unknown", str(error), None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problems.append(f"its files contradict themselves ({error!r})")
        return "broken", "cannot be read", None
    _try(problems, lambda: _check_config(run, problems), None)
    return status.phase, status.detail, status


def _check_config(run: RunDirectory, problems: list[str]) -> None:
    try:
        text = run.config_path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=_YAML_LOADER)  # noqa: S506 - both are safe loaders
        config = RunConfig.model_validate_json(json.dumps(values, default=str))
    except (yaml.YAMLError, UnicodeDecodeError):
        problems.append("config.yaml: damaged")
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) for item in error.errors()[:3])
        problems.append(f"config.yaml: damaged, or of another version of this program ({fields})")
    else:
        if config.name != run.path.name:
            problems.append(f"config.yaml: of a run named {config.name}; was it renamed?")


def _attempts(run: RunDirectory, problems: list[str]) -> list[Attempt]:
    attempts = read_attempts(run)
    if run.attempts_path.exists():
        lines = run.attempts_path.read_text(encoding="utf-8", errors="replace").splitlines()
        damaged = sum(not _is_object(line) for line in lines if line.strip())
        if damaged:
            problems.append(f"attempts.jsonl: {damaged} of {len(lines)} lines are damaged")
    sound = [attempt for attempt in attempts if _is_sound(attempt)]
    if len(sound) < len(attempts):
        problems.append(f"attempts.jsonl: {len(attempts) - len(sound)} attempts are damaged")
    return sound


def _is_sound(attempt: Attempt) -> bool:
    steps = (attempt.checkpoint_step_before, attempt.checkpoint_step_after, attempt.lost_steps)
    return (
        isinstance(attempt.start_time, int | float)
        and isinstance(attempt.end_time, int | float | None)
        and all(isinstance(text, str) for text in (attempt.job, attempt.host, attempt.reason))
        and all(step is None or isinstance(step, int) for step in steps)
        and (attempt.next is None or attempt.next in get_args(Next))
    )


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _plan(run: RunDirectory, problems: list[str]) -> dict[str, Any]:
    if run.exists and not run.plan_path.exists():
        problems.append("plan.json: missing; launching or resuming writes it anew")
    return _object(run.plan_path, problems)


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    value = read_json(path)
    if value is None and path.exists():
        problems.append(f"{path.name}: damaged")
    return value or {}


def _checkpoint(run: RunDirectory) -> tuple[int | None, float | None]:
    """Step of the newest checkpoint, and when it was complete, unix seconds."""
    step = run.newest_checkpoint_step()
    if step is None:
        return None, None
    directory = run.checkpoints_dir / f"step_{step:08d}"
    for path in (directory / "manifest.json", directory):
        if path.exists():
            return step, path.stat().st_mtime
    return step, None


def _launched_time(run: RunDirectory) -> float | None:
    for path in (run.config_path, run.path):
        if path.exists():
            return path.stat().st_mtime
    return None


def _eta(progress: dict[str, Any], age_seconds: float | None) -> float | None:
    eta = _number(progress, "eta_seconds")
    return None if eta is None else max(0.0, eta - (age_seconds or 0.0))


def _age(time: float | None, now: float) -> float | None:
    return None if time is None else max(0.0, now - time)


def _number(values: dict[str, Any], key: str) -> float | None:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _whole(values: dict[str, Any], key: str) -> int | None:
    value = _number(values, key)
    return None if value is None else int(value)


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user id {uid} on {socket.gethostname()}"


def _try(problems: list[str], read: Callable[[], Found], otherwise: Found) -> Found:
    """What ``read`` returns; whatever damage it meets becomes a problem."""
    try:
        return read()
    except PermissionError:
        problems.append(NOT_READABLE)
    except OSError as error:
        problems.append(f"{Path(error.filename or '').name}: {error.strerror}")
    except PretrainError as error:
        problems.append(str(error))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problems.append(f"its files contradict themselves ({error!r})")
    return otherwise
