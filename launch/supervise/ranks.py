"""The ranks of one attempt as subprocesses of this machine: started, watched, stopped, killed."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launch.ledger import Cause
from launch.processes import die_with_parent
from launch.supervise.decide import Failure
from pretrain.errors import (
    EXIT_BAD_INPUT,
    EXIT_BAD_NODE,
    EXIT_DIVERGED,
    EXIT_HUNG,
    EXIT_STORAGE,
    LaunchError,
)
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import is_alive, start_ticks
from pretrain.watchdog import STACKS_SIGNAL
from pretrain.world import node_name

PORTS = range(20000, 32000)
"""Below the kernel's range for outgoing connections, so that none of those takes the port first."""

_MEANINGS: dict[int, tuple[Cause, str]] = {
    EXIT_HUNG: ("rank_hung", "hung and ended itself; its stacks are beside its log"),
    EXIT_BAD_NODE: ("bad_node", "found a node unfit"),
    EXIT_DIVERGED: ("diverged_ranks", "found the ranks computing with different weights"),
    EXIT_STORAGE: (
        "storage",
        f"exited with code {EXIT_STORAGE} (a disk did not take its checkpoint)",
    ),
    EXIT_BAD_INPUT: ("bad_input", f"exited with code {EXIT_BAD_INPUT}"),
}
_FROM_OTHER_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


def rank_command(run: RunDirectory, python: str = sys.executable) -> list[str]:
    """The command every rank runs."""
    return [python, "-m", "pretrain", "--run", str(run.path)]


@dataclass(frozen=True)
class Layout:
    """Shape of the job.

    Attributes:
        nodes: machines.
        ranks_per_node: processes on each.
        cpus_per_rank: cores of each rank; None leaves them to the machine.
        threads_per_rank: CPU threads of a rank's tensor operations; None shares the cores.
    """

    nodes: int
    ranks_per_node: int
    cpus_per_rank: int | None = None
    threads_per_rank: int | None = None

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.ranks_per_node


class Ranks(Protocol):
    """The ranks of an attempt, however they were started."""

    @property
    def processes(self) -> list[tuple[int, int]]:
        """(process id, start ticks) of those on this machine."""
        ...

    def ended(self) -> bool:
        """Whether all have ended."""
        ...

    def any_ended(self) -> bool:
        """Whether at least one has ended."""
        ...

    def failure(self) -> Failure | None:
        """The first bad end so far."""
        ...

    def ask_to_stop(self) -> None:
        """Ask all to save and leave."""
        ...

    def ask_for_stacks(self) -> None:
        """Ask all to write down where their threads stand; they go on."""
        ...

    def kill(self) -> None:
        """End all at once and wait for it."""
        ...


def free_port() -> int:
    """A TCP port that nobody listens on now.

    Raises:
        LaunchError: none was found.
    """
    for port in random.sample(PORTS, 200):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise LaunchError(f"no free TCP port found between {PORTS.start} and {PORTS.stop - 1}")


def shared_environment(
    attempt: int, *, address: str, port: int, threads: int | None
) -> dict[str, str]:
    """The environment all ranks of an attempt have in common: this process's, and the meeting."""
    environment = {k: v for k, v in os.environ.items() if k not in _FROM_OTHER_LAUNCHERS}
    environment |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "PRETRAIN_ATTEMPT": str(attempt),
        "PYTHONUNBUFFERED": "1",
    }
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


class LocalRanks:
    """The ranks of an attempt, running.

    Each has a session of its own, so that a terminal's Ctrl-C does not reach it and that its loader
    processes can be killed with it, and gets SIGTERM when this process dies.
    """

    def __init__(
        self, command: Sequence[str], run: RunDirectory, attempt: int, layout: Layout
    ) -> None:
        cores = len(os.sched_getaffinity(0))
        threads = layout.threads_per_rank or max(1, cores // layout.size)
        shared = shared_environment(attempt, address="127.0.0.1", port=free_port(), threads=threads)
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._exit_codes: dict[int, int] = {}
        self._failed_first: int | None = None
        try:
            for rank in range(layout.size):
                own = {"RANK": rank, "WORLD_SIZE": layout.size}
                own |= {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": layout.size}
                environment = shared | {name: str(value) for name, value in own.items()}
                log = run.rank_log(attempt, rank)
                self._ranks.append(_start(command, environment, run.code_path, log))
        except OSError as error:
            self.kill()
            raise LaunchError(f"cannot start rank {len(self._ranks)}: {error}") from None

    @property
    def processes(self) -> list[tuple[int, int]]:
        """(process id, start time in clock ticks) of each rank that lives."""
        found = ((rank.pid, start_ticks(rank.pid)) for rank in self._ranks)
        return [(pid, ticks) for pid, ticks in found if ticks is not None]

    def ended(self) -> bool:
        """Whether every rank has ended, well or badly."""
        self._look()
        return len(self._exit_codes) == len(self._ranks)

    def any_ended(self) -> bool:
        """Whether at least one rank has ended."""
        self._look()
        return bool(self._exit_codes)

    def failure(self) -> Failure | None:
        """The first bad end among the ranks so far."""
        self._look()
        bad = [rank for rank, code in self._exit_codes.items() if code == EXIT_BAD_INPUT]
        rank = bad[0] if bad else self._failed_first
        if rank is None:
            return None
        code = self._exit_codes[rank]
        reason = f"rank {rank} {describe_exit(code)}"
        return Failure(rank, reason, cause_of_exit(code), node=node_name())

    def ask_to_stop(self) -> None:
        """Ask every rank to save and leave."""
        self._signal(signal.SIGTERM)

    def ask_for_stacks(self) -> None:
        """Ask every rank to write down where its threads stand."""
        self._signal(STACKS_SIGNAL)

    def _signal(self, number: signal.Signals) -> None:
        for index, rank in enumerate(self._ranks):
            if index not in self._exit_codes:
                os.kill(rank.pid, number)  # at worst a zombie: not reaped before kill()

    def kill(self) -> None:
        """End every rank and the processes it started, at once, and wait until they are gone."""
        for rank in self._ranks:
            if rank.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(rank.pid, signal.SIGKILL)
        for rank in self._ranks:
            rank.wait()

    def _look(self) -> None:
        found: list[tuple[bool, int]] = []
        for index, rank in enumerate(self._ranks):
            if index in self._exit_codes or rank.returncode is not None:
                continue
            # Left as a zombie, the rank keeps its process group's number from being used again.
            end = os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is None:
                continue
            code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
            self._exit_codes[index] = code
            if code != 0:
                found.append((code > 0, index))
        if found and self._failed_first is None:
            # Of ranks found together, one that was killed outweighs peers that noticed.
            self._failed_first = min(found)[1]


def describe_exit(code: int) -> str:
    """An exit code as Popen gives it, in words."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was killed by {name}{hint}"
    return _MEANINGS[code][1] if code in _MEANINGS else f"exited with code {code}"


def cause_of_exit(code: int) -> Cause:
    """What a rank's exit code, other than zero, says about its end."""
    return _MEANINGS[code][0] if code in _MEANINGS else "rank_died"


def end_leftovers(ranks: Sequence[tuple[int, int]], *, patience_seconds: float) -> list[int]:
    """Wait for ranks that outlived their supervisor, then kill those that stay.

    They were told to save when it died; a new attempt must not start beside them.

    Returns:
        Process ids that had to be killed.
    """
    deadline = time.monotonic() + patience_seconds
    alive = [(pid, ticks) for pid, ticks in ranks if is_alive(pid, ticks)]
    while alive and time.monotonic() < deadline:
        time.sleep(0.1)
        alive = [(pid, ticks) for pid, ticks in alive if is_alive(pid, ticks)]
    for pid, _ in alive:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    while any(is_alive(pid, ticks) for pid, ticks in alive):
        time.sleep(0.05)
    return [pid for pid, _ in alive]


def _start(
    command: Sequence[str], environment: dict[str, str], directory: Path, log: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )
