"""Weights & Biases at arm's length: a process of its own that follows the record.

It is started beside rank zero and reads metrics.jsonl. So an absent, broken, slow or hanging wandb
cannot delay a step, print into the rank log, or see this process's arguments; numbers it missed are
sent by the next attempt, and after a kill of rank zero it still finishes its run.
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
from typing import IO

from pretrain.config.schema import WandbConfig
from pretrain.files import read_json, replace_text

START_SECONDS = 120.0
"""Longest start of a wandb run; `WandbMirror` then gives up on it."""
FINISH_SECONDS = 30.0
"""Longest end of a wandb run; what is not sent by then is left for ``wandb sync``."""


class WandbMirror:
    """One wandb run that mirrors one run's record, over all attempts under one id.

    No method raises for anything that wandb does. Rank zero alone constructs one.

    Args:
        settings: mode (not ``disabled``), project and entity.
        directory: the run's ``wandb/``; created. Holds ``mirror.json`` (run id and settings),
            ``mirrored.json`` (how far the record was sent) and ``mirror.log``.
        metrics_path: the record, existing, already cut back.
        name: display name of the run.
        config: what wandb shows as the run's config.
        start_seconds: time limit of the start.
        finish_seconds: time limit of the end.
    """

    def __init__(
        self,
        settings: WandbConfig,
        *,
        directory: Path,
        metrics_path: Path,
        name: str,
        config: Mapping[str, object],
        start_seconds: float = START_SECONDS,
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        self._log_path = directory / "mirror.log"
        self._finish_seconds = finish_seconds
        self._problem: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            directory.mkdir(exist_ok=True)
            settings_path = directory / "mirror.json"
            values = {
                "id": _run_id(settings_path),
                "name": name,
                "project": settings.project,
                "entity": settings.entity,
                "mode": settings.mode,
                "directory": str(directory),
                "metrics_path": str(metrics_path),
                "rank_pid": os.getpid(),
                "start_seconds": start_seconds,
                "finish_seconds": finish_seconds,
                "config": dict(config),
            }
            replace_text(settings_path, json.dumps(values, indent=1) + "\n")
            with self._log_path.open("wb") as log:
                self._process = _start(settings_path, log)
        except OSError as error:
            self._problem = f"cannot start: {error}"

    def problem(self) -> str | None:
        """Why the mirror ended before it was told to, or could not end; None while all is well."""
        if self._problem is None and self._process is not None:
            code = self._process.poll()
            if code:
                self._problem = self._last_words() or f"its process ended with code {code}"
        return self._problem

    def close(self) -> None:
        """Let it send the rest and finish; after the time limit it is killed."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101 - Popen was given a pipe
        # Loader workers may hold copies of the pipe's end, so closing alone would not be seen.
        with suppress(OSError):
            process.stdin.write(b"stop\n")
            process.stdin.close()
        try:
            code = process.wait(self._finish_seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._problem = f"did not finish within {self._finish_seconds:g} s and was killed"
            return
        if code and self._problem is None:
            self._problem = self._last_words() or f"its process ended with code {code}"

    def _last_words(self) -> str:
        try:
            lines = self._log_path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else ""


def _start(settings_path: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start it in its own session, so that signals meant for the rank pass it by."""
    root = Path(__file__).parents[3]
    directory = settings_path.parent
    own = {"WANDB_CACHE_DIR": "cache", "WANDB_CONFIG_DIR": "config", "WANDB_DATA_DIR": "data"}
    private = {name: str(directory / folder) for name, folder in own.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "pretrain.metrics.mirror.process", str(settings_path)],
        cwd=root,
        env={**private, **os.environ},
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _run_id(settings_path: Path) -> str:
    """The id of the attempts before, else a new one."""
    known = (read_json(settings_path) or {}).get("id")
    if isinstance(known, str) and re.fullmatch(r"[a-z0-9]{8,32}", known):
        return known
    return secrets.token_hex(4)
