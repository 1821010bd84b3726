"""Runs a function in several real processes (ranks) over gloo, for tests.

``run_ranks("cases_engine:suite", 2, [3])`` starts two fresh interpreters, each of which joins a
process group, calls ``suite(world, [3])`` from ``tests/dist/cases_engine.py`` and hands back its
JSON-able result.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GRACE_SECONDS = 15
"""How long the other ranks may take to end by themselves once one has failed."""


class RanksFailed(Exception):  # noqa: N818
    """Ranks that raised, died or hung; the message holds the output of each."""

    def __init__(self, message: str, return_codes: list[int | None]) -> None:
        super().__init__(message)
        self.return_codes = return_codes


def run_ranks(function: str, size: int, *args: Any, timeout_seconds: float = 120) -> list[Any]:
    """Run ``module:function`` in ``size`` ranks and return their results in rank order.

    The module is found in ``tests/dist``; ``args`` and results are JSON values. No process
    outlives the call.

    Raises:
        RanksFailed: a rank did not end well in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        ranks = [_start(function, rank, size, args, port, Path(folder)) for rank in range(size)]
        try:
            codes = _wait(ranks, timeout_seconds)
        finally:
            for rank in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(rank.pid, signal.SIGKILL)
                rank.wait()
        if codes != [0] * size:
            logs = [
                f"--- rank {rank}: {'hung' if code is None else f'exit code {code}'}\n"
                + (Path(folder) / f"{rank}.log").read_text(errors="replace")[-6000:]
                for rank, code in enumerate(codes)
            ]
            raise RanksFailed("\n".join([function, *logs]), codes)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]


@dataclass(frozen=True)
class Ended:
    """A single rank that ended well: its result, and all that it and its libraries printed."""

    result: Any
    stdout: str
    stderr: str


def run_rank_alone(function: str, timeout_seconds: float = 120) -> Ended:
    """Run ``module:function`` in one rank, its two outputs apart, down to the file descriptors."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "0.json"
        done = subprocess.run(
            [sys.executable, str(HERE / "ranks.py"), function, "[]", str(result)],
            env=_environment(0, 1, _free_port()),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        if done.returncode:
            raise RanksFailed(f"{function}\n{done.stdout}{done.stderr}", [done.returncode])
        return Ended(json.loads(result.read_text()), done.stdout, done.stderr)


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
    }


def _start(
    function: str, rank: int, size: int, args: tuple[Any, ...], port: int, folder: Path
) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(HERE / "ranks.py"), function, json.dumps(args)]
    with (folder / f"{rank}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, str(folder / f"{rank}.json")],
            env=_environment(rank, size, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(ranks: list[subprocess.Popen[bytes]], timeout_seconds: float) -> list[int | None]:
    """Return exit codes once all have ended, or are late; None for those still running."""
    deadline = time.monotonic() + timeout_seconds
    failed: float | None = None
    codes = [rank.poll() for rank in ranks]
    while None in codes and time.monotonic() < deadline:
        if failed is None and any(codes):
            failed = time.monotonic()
            deadline = min(deadline, failed + GRACE_SECONDS)
        time.sleep(0.02)
        codes = [rank.poll() for rank in ranks]
    return codes


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _main() -> None:
    function, args, result_path = sys.argv[1:]
    import torch

    from pretrain import dist
    from pretrain.world import world_from_environment

    module, _, name = function.partition(":")
    world = world_from_environment()
    torch.set_num_threads(1)
    dist.initialize(world, torch.device("cpu"), timeout_seconds=60)
    result = getattr(importlib.import_module(module), name)(world, *json.loads(args))
    Path(result_path).write_text(json.dumps(result))
    dist.shutdown()


if __name__ == "__main__":
    _main()
