"""Weights & Biases at arm's length: a process of its own that follows the record.

It is started beside rank zero and reads metrics.jsonl and events.jsonl. So an absent, broken, slow
or hanging wandb cannot delay a step, print into the rank log, or see this process's arguments; what
it missed is sent by the next attempt, and after a kill of rank zero it still finishes its run.
"""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pretrain.config.schema import WandbConfig
from pretrain.files import read_json, replace_text
from pretrain.run_directory import RunDirectory

SETTINGS_NAME = "mirror.json"
"""In the run's ``wandb/``: the run's id at wandb, and all that the process needs."""
START_SECONDS = 120.0
"""Longest start of a wandb run; `WandbMirror` then gives up on it."""
FINISH_SECONDS = 30.0
"""Longest end of a wandb run; what is not sent by then is left for ``wandb sync``."""
LAST_SECONDS = 90.0
"""Longest that a supervisor waits for `send_the_rest`."""


class WandbMirror:
    """One wandb run that mirrors one run's record, over all attempts under one id.

    It follows the record through cuts, so that one mirror serves an attempt with all its rewinds.
    No method raises for anything that wandb does. Rank zero alone constructs one.

    Args:
        settings: mode (not ``disabled``), project and entity.
        run: the run's directory, whose record exists and is already cut back. In its ``wandb/``,
            created here, are ``mirror.json`` (run id and settings), ``mirror.log`` and wandb's
            files, which say how far the record was sent.
        name: display name of the run.
        images_per_step: that training takes.
        config: what wandb shows as the run's config.
        start_seconds: time limit of the start.
        finish_seconds: time limit of the end.
    """

    def __init__(
        self,
        settings: WandbConfig,
        *,
        run: RunDirectory,
        name: str,
        images_per_step: int,
        config: Mapping[str, object],
        start_seconds: float = START_SECONDS,
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        directory = run.wandb_dir
        self._log_path = directory / "mirror.log"
        self._finish_seconds = finish_seconds
        self._problem: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            directory.mkdir(exist_ok=True)
            settings_path = directory / SETTINGS_NAME
            values = settings_of(
                run, settings, name=name, images_per_step=images_per_step, config=config
            )
            values |= {"start_seconds": start_seconds, "finish_seconds": finish_seconds}
            replace_text(settings_path, json.dumps(values, indent=1) + "\n")
            with self._log_path.open("wb") as log:
                self._process = start_process(settings_path, log, stdin=subprocess.PIPE)
        except OSError as error:
            self._problem = f"cannot start: {error}"

    def problem(self) -> str | None:
        """Why the mirror ended before it was told to, or could not end; None while all is well."""
        if self._problem is None and self._process is not None:
            code = self._process.poll()
            if code:
                self._problem = last_words(self._log_path) or f"its process ended with code {code}"
        return self._problem

    def close(self, *, orderly: bool = True) -> None:
        """Let it send the rest and finish; after the time limit it is killed.

        Args:
            orderly: whether the record is complete. Otherwise its last step, of which more may
                come in the next attempt, is left to that, and the run counts as failed.
        """
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101 - Popen was given a pipe
        # Loader workers may hold copies of the pipe's end, so closing alone would not be seen.
        with suppress(OSError):
            process.stdin.write(b"stop\n" if orderly else b"leave\n")
            process.stdin.close()
        try:
            code = process.wait(self._finish_seconds)
        except subprocess.TimeoutExpired:
            kill(process)
            self._problem = _killed(self._finish_seconds, self._log_path)
            return
        if code and self._problem is None:
            self._problem = last_words(self._log_path) or f"its process ended with code {code}"


def settings_of(
    run: RunDirectory,
    settings: WandbConfig,
    *,
    name: str,
    images_per_step: int,
    config: Mapping[str, object],
) -> dict[str, Any]:
    """What the process is told, JSON values; the arguments are those of `WandbMirror`."""
    return {
        "id": run_id(run.wandb_dir / SETTINGS_NAME),
        "name": name,
        "project": settings.project,
        "entity": settings.entity,
        "mode": settings.mode,
        "directory": str(run.wandb_dir),
        "metrics_path": str(run.metrics_path),
        "events_path": str(run.events_path),
        "checkpoints_dir": str(run.checkpoints_dir),
        "augmentation_path": str(run.augmentation_path),
        "images_per_step": images_per_step,
        "rank_pid": os.getpid(),
        "start_seconds": START_SECONDS,
        "finish_seconds": FINISH_SECONDS,
        "config": dict(config),
    }


def send_the_rest(
    directory: Path,
    exit_code: int,
    *,
    python: str = sys.executable,
    seconds: float = LAST_SECONDS,
) -> str | None:
    """Send what a killed attempt left unsent, and end wandb's run with that exit code.

    Nothing is raised. A run without a mirror has nothing to send.

    Args:
        directory: the ``wandb/`` of a run that nothing trains any more.
        exit_code: how it ended, for wandb.
        python: the interpreter that has wandb.
        seconds: time limit, after which it is left as it is.

    Returns:
        Why it could not be sent; None where all is well.
    """
    settings_path, log_path = directory / SETTINGS_NAME, directory / "mirror_last.log"
    if not settings_path.is_file():
        return None
    try:
        with log_path.open("wb") as log:
            process = start_process(settings_path, log, "--last", str(exit_code), python=python)
    except OSError as error:
        return f"cannot start: {error}"
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        return _killed(seconds, log_path)
    return (last_words(log_path) or f"its process ended with code {code}") if code else None


def start_process(
    settings_path: Path,
    log: IO[bytes],
    *arguments: str,
    python: str = sys.executable,
    stdin: int = subprocess.DEVNULL,
) -> "subprocess.Popen[bytes]":
    """Start it in its own session, so that signals meant for the rank pass it by."""
    root = Path(__file__).parents[3]
    directory = settings_path.parent
    own = {"WANDB_CACHE_DIR": "cache", "WANDB_CONFIG_DIR": "config", "WANDB_DATA_DIR": "data"}
    private = {name: str(directory / folder) for name, folder in own.items()}
    return subprocess.Popen(
        [python, "-m", "pretrain.metrics.mirror.process", str(settings_path), *arguments],
        cwd=root,
        env={**private, **os.environ},
        stdin=stdin,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End the process at once; wandb's own follows it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_words(log_path: Path) -> str:
    """Why the process failed, and what the server did then; nothing where it did not say."""
    try:
        lines = log_path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    said = {"error": "", "note": ""}
    for line in lines:
        kind, separator, text = line.partition(": ")
        if separator and kind in said:
            said[kind] = text
    return "; ".join(filter(None, said.values()))


def _killed(seconds: float, log_path: Path) -> str:
    reason = f"did not finish within {seconds:g} s and was killed"
    return "; ".join(filter(None, (reason, last_words(log_path))))


def run_id(settings_path: Path) -> str:
    """The id of the attempts before, else a new one."""
    known = (read_json(settings_path) or {}).get("id")
    if isinstance(known, str) and re.fullmatch(r"[a-z0-9]{8,32}", known):
        return known
    return secrets.token_hex(4)
