"""One candidate in a process of its own, whatever becomes of it. No torch."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pretrain.tune.trials import Failure, Measured

OUT_OF_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "memoryerror")
"""What a process says, in small letters, that lacked memory."""
PROGRAM = ("-m", "pretrain.tune.measure")
"""What Python is told to run."""
LOOK_SECONDS = 1.0
"""How often somebody is told that a process still works."""
SAID_CHARACTERS = 4000
"""How much of the end of what a process wrote is looked at."""


@dataclass(frozen=True)
class Order:
    """What a process is to do.

    Attributes:
        device: ``cuda`` or ``cpu``.
        ranks_per_node: that will share the cores and, on a CPU, the memory.
        parent: process that waits for it, with which it ends.
        config: resolved config, a file; None only describes the device.
        overrides: what changes in it: what the candidate says, and a global batch for one rank.
        measured_seconds: for how long steps are timed, about; longer where steps are.
        time: when it was given, unix seconds.
    """

    device: str
    ranks_per_node: int
    parent: int
    config: str | None = None
    overrides: tuple[str, ...] = ()
    measured_seconds: float = 0.0
    time: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What came of an order: what was found, or why nothing was."""

    found: dict[str, Any] | None
    failure: Failure | None


def measured(answer: Answer) -> Measured | Failure:
    """The answer to an order to measure."""
    if answer.found is not None:
        return Measured(**answer.found)
    return answer.failure or Failure("crash", "it said nothing")


def carry_out(
    order: Order, limit_seconds: float, doing: Callable[[str], None] = lambda _: None
) -> Answer:
    """Run an order in a new process; nothing of it is left when this returns, or is interrupted.

    Args:
        order: what is to be done.
        limit_seconds: after which the process is killed.
        doing: told about once a second what the process is at.
    """
    command = [sys.executable, *PROGRAM, json.dumps(asdict(order))]
    with tempfile.TemporaryFile() as log, _process(command, log) as process:
        last, timely = _follow(process, limit_seconds, doing)
        if "found" in last:
            return Answer(last["found"], None)
        if "failed" in last:
            return Answer(None, Failure(last["failed"], last["reason"]))
        if not timely:
            at = last.get("doing", "its start")
            return Answer(None, Failure("time", f"over {limit_seconds:.0f} s, at {at}"))
        return Answer(None, _why(process.wait(), _end_of(log)))


@contextmanager
def _process(command: list[str], log: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, which with all of its children is gone afterwards."""
    source = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _follow(
    process: subprocess.Popen[bytes], limit_seconds: float, doing: Callable[[str], None]
) -> tuple[dict[str, Any], bool]:
    """Read reports until the last; return it, and whether it or the end came in time."""
    assert process.stdout is not None  # noqa: S101 - for the type checker
    deadline = time.monotonic() + limit_seconds
    last: dict[str, Any] = {"doing": "its start"}
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            doing(last.get("doing", ""))
            if not selector.select(min(left, LOOK_SECONDS)):
                continue
            content = os.read(process.stdout.fileno(), 65536)
            if not content:
                return last, True
            *lines, rest = (rest + content).split(b"\n")
            for line in lines:
                last = json.loads(line)
            if "doing" not in last:
                return last, True
    return last, False


def _why(code: int, said: str) -> Failure:
    """Explain a process that ended without a report."""
    if any(words in said.lower() for words in OUT_OF_MEMORY):
        return Failure("memory", _last_line(said))
    if code == -signal.SIGKILL:
        return Failure("memory", "killed, as the kernel does when the host's memory is used up")
    if code < 0:
        return Failure("crash", f"killed by {signal.Signals(-code).name}: {_last_line(said)}")
    return Failure("crash", f"exit code {code}: {_last_line(said)}")


def _end_of(log: BinaryIO) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - SAID_CHARACTERS))
    return log.read().decode(errors="replace")


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
