"""Lets the subjects of a cell take turns, each in a process of its own."""

import contextlib
import json
import os
import select
import signal
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

from pretrain.errors import PretrainError

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
        remarks: what else there is to say of it.
        turns: what each round measured.
        end: why it took no further turns; None where it took them all.
        failed: it ended in a way that nobody expects.
    """

    facts: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
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


class WorkerError(PretrainError):
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
            start_new_session=True,
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
        request = json.dumps({"warm_up": warm_up, "steps": steps})
        with contextlib.suppress(BrokenPipeError):  # its end is said where its answer is awaited
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and what it started to compile with."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@dataclass(frozen=True)
class Turns:
    """How subjects take turns.

    Attributes:
        device: "cuda" or "cpu".
        rounds: of all subjects.
        steps: that count in each turn.
        apart: each turn in a fresh process, one at a time: for memory that has no room for those
            who wait, or a GPU that lets in one process only.
        limit_seconds: longest wait for any answer.
        tell: is given lines of progress.
    """

    device: str
    rounds: int
    steps: int
    apart: bool
    limit_seconds: float
    tell: Callable[[str], None]

    def take(self, cell: Cell, subjects: Sequence[Subject]) -> Measured:
        """Measure a cell.

        All processes are started at once, then each warms up alone, then they take turns. Each
        round begins with another subject: none has always the same neighbour.

        Args:
            cell: what they have in common.
            subjects: who takes turns, beside a product of matrices, with which each round begins.

        Raises:
            WorkerError: the one that multiplies matrices cannot.
        """
        measured = Measured({subject: Row() for subject in subjects})
        own: dict[Subject | None, dict[str, Any]] = {None: {"product": cell.precision}}
        for subject in subjects:
            own[subject] = {"cell": asdict(cell), "subject": asdict(subject)}
        with ExitStack() as stack:
            workers: dict[Subject | None, Worker] = {}
            if not self.apart:
                workers = {who: stack.enter_context(self._start(own[who])) for who in own}
                workers[None].answer()
            for subject, worker in workers.items():
                if subject is not None:
                    row = measured.rows[subject]
                    self._ask(subject, row, partial(meet, row, worker))
            for subject, worker in workers.items():
                if subject is not None:
                    warm_up = partial(worker.turn, WARM_UP_STEPS, 0)
                    self._ask(subject, measured.rows[subject], warm_up)
            for number in range(self.rounds):
                product = self._turn(own[None], workers.get(None), Row())
                if "end" in product:
                    raise WorkerError(f"a product of matrices: {product['end']}")
                measured.product_flop_per_second.append(product["flop_per_second"])
                first = number % len(subjects)
                for subject in (*subjects[first:], *subjects[:first]):
                    row = measured.rows[subject]
                    call = partial(self._turn, own[subject], workers.get(subject), row)
                    turn = self._ask(subject, row, call)
                    row.turns += [] if turn is None else [turn]
        return measured

    def _start(self, given: Mapping[str, Any]) -> Worker:
        return Worker({**given, "device": self.device}, self.limit_seconds)

    def _turn(self, given: Mapping[str, Any], worker: Worker | None, row: Row) -> dict[str, Any]:
        """Let a worker take a turn that counts, or a fresh one."""
        if worker is not None:
            return worker.turn(STEPS_AFTER_WAITING, self.steps)
        with self._start(given) as fresh:
            met = meet(row, fresh)
            return met if "end" in met else fresh.turn(WARM_UP_STEPS, self.steps)

    def _ask(
        self, subject: Subject, row: Row, call: Callable[[], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Return an answer; None, and a note in the row, where there will be no more."""
        if row.end is not None:
            return None
        began = time.perf_counter()
        try:
            answer = call()
        except WorkerError as error:
            answer, row.failed = {"end": str(error)}, True
        row.end = answer.get("end")
        self.tell(f"{subject.label}: {row.end or f'{time.perf_counter() - began:.1f} s'}")
        return answer if row.end is None else None


def meet(row: Row, worker: Worker) -> dict[str, Any]:
    """Wait until a worker has built its subject, and note what it says of it."""
    answer = worker.answer()
    row.facts, row.remarks = answer.get("facts", {}), answer.get("remarks", [])
    return answer
