"""Lets the subjects of a cell take turns, each in a process of its own."""

import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from step_matrix import Cell, Subject

WORKER = Path(__file__).with_name("step_worker.py")
WARM_UP_STEPS, STEPS_AFTER_WAITING = 3, 1
"""Before the first turn (where compiling happens), and at the beginning of every other: a process
gives memory back when its turn ends."""
PARTS = ("augment", "forward", "backward", "optimizer")
"""Of a step, each timed."""
_STDERR_CHARACTERS = 3000


@dataclass
class Row:
    """What came of a subject in a cell.

    Attributes:
        facts: parameters and forward multiply-adds of its network.
        turns: what each round measured.
        end: why it took no further turns; None where it took them all.
        failed: it ended in a way that nobody expects.
    """

    facts: dict[str, int] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    end: str | None = None
    failed: bool = False


@dataclass
class Measured:
    """What came of a cell.

    Attributes:
        rows: by subject.
        product_flop_per_second: what the device reached in each round.
    """

    rows: dict[Subject, Row]
    product_flop_per_second: list[float] = field(default_factory=list)


class WorkerError(Exception):
    """A worker ended, or says no more; with what it wrote last."""


class Worker:
    """A process of `step_worker.py`, for as long as a ``with`` block lasts.

    Args:
        given: what it builds.
        limit_seconds: longest wait for an answer.
    """

    def __init__(self, given: Mapping[str, Any], limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end of the block
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def answer(self) -> dict[str, Any]:
        """Wait for the next line.

        Raises:
            WorkerError: there is none.
        """
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._limit_seconds)
        if not ready:
            raise WorkerError(f"no answer in {self._limit_seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()[-_STDERR_CHARACTERS:]
            print(said, file=sys.stderr)
            raise WorkerError(f"ended with code {code}: {said.splitlines()[-1] if said else ''}")
        return json.loads(line)

    def turn(self, warm_up: int, steps: int) -> dict[str, Any]:
        """Let it take a turn.

        Raises:
            WorkerError: it did not.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(
                json.dumps({"warm_up": warm_up, "steps": steps}).encode() + b"\n"
            )
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is said where its answer is awaited
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def take_turns(
    cell: Cell,
    subjects: Sequence[Subject],
    product: Worker,
    *,
    device: str,
    rounds: int,
    steps: int,
    limit_seconds: float,
    tell: Callable[[str], None],
) -> Measured:
    """Measure a cell.

    All processes are started at once, then each warms up alone, then they take turns. Each round
    begins with another subject: none has always the same neighbour.

    Args:
        cell: what they have in common.
        subjects: who takes turns.
        product: the worker that multiplies matrices, which takes the first turn of each round.
        device: "cuda" or "cpu".
        rounds: how many.
        steps: that count in each turn.
        limit_seconds: longest wait for any answer.
        tell: is given a line of progress.

    Raises:
        WorkerError: the one that multiplies matrices does not answer.
    """
    measured = Measured({subject: Row() for subject in subjects})
    with ExitStack() as stack:
        workers: dict[Subject, Worker] = {}
        for subject in subjects:
            given = {"cell": asdict(cell), "subject": asdict(subject), "device": device}
            workers[subject] = stack.enter_context(Worker(given, limit_seconds))
        for subject, row in measured.rows.items():
            row.facts = _ask(subject, row, workers[subject].answer, tell) or {}
        for subject, row in measured.rows.items():
            _ask(subject, row, partial(workers[subject].turn, WARM_UP_STEPS, 0), tell)
        for number in range(rounds):
            measured.product_flop_per_second.append(product.turn(0, 0)["flop_per_second"])
            first = number % len(subjects)
            for subject in (*subjects[first:], *subjects[:first]):
                row = measured.rows[subject]
                call = partial(workers[subject].turn, STEPS_AFTER_WAITING, steps)
                turn = _ask(subject, row, call, tell)
                row.turns += [] if turn is None else [turn]
    return measured


def _ask(
    subject: Subject, row: Row, call: Callable[[], dict[str, Any]], tell: Callable[[str], None]
) -> dict[str, Any] | None:
    """Return the answer of a worker; None, and a note in its row, where it has ended."""
    if row.end is not None:
        return None
    began = time.perf_counter()
    try:
        answer = call()
    except WorkerError as error:
        answer, row.failed = {"end": str(error)}, True
    row.end = answer.get("end")
    tell(f"{subject.label}: {row.end or f'{time.perf_counter() - began:.1f} s'}")
    return answer if row.end is None else None
