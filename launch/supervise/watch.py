"""Watching the ranks of one attempt until they have ended or cannot go on."""

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

from launch.supervise.decide import Failure
from launch.supervise.hang import find_culprit, read_stacks
from launch.supervise.ranks import Layout, Ranks
from launch.supervise.signs import Signs
from pretrain.run_directory import RunDirectory
from pretrain.watchdog import LINGER_SECONDS

POLL_SECONDS = 0.05
PEERS_SECONDS = 1.0
"""Time for the other ranks to write down what they saw of a failure, before they are killed."""
LEAVE_SECONDS = 300.0
"""Time for the last rank to leave after the first one has."""


class StopRequest:
    """What signals have asked of this supervisor: SIGTERM, SIGINT, SIGUSR2 stop; SIGQUIT ends now.

    Handlers only set flags. Replaces the handlers that submitit installs.
    """

    def __init__(self) -> None:
        self.stop = False
        self.now = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGQUIT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.stop = True
        self.now = self.now or number == signal.SIGQUIT


def watch(
    ranks: Ranks, request: StopRequest, signs: Signs, say: Callable[[str], None]
) -> Failure | None:
    """Return when all ranks have ended or the attempt cannot go on; the ranks may live then.

    Returns:
        The first bad end; None where there was none.
    """
    asked = stacks_asked = False
    leave_by: float | None = None
    while not ranks.ended():
        if request.now:
            say("ending the ranks now, as asked")
            break
        if request.stop and not asked:
            asked = True
            say("asking the ranks to save and stop")
            ranks.ask_to_stop()
        if ranks.failure() is not None:
            _wait(ranks, PEERS_SECONDS)
            break
        missing = signs.missing()
        if missing is not None:
            say(missing.reason)
            ranks.ask_for_stacks()
            _wait(ranks, LINGER_SECONDS)
            return missing
        if not stacks_asked and signs.stacks_written():
            stacks_asked = True
            say("a rank no longer moves; asking all for their stacks")
            ranks.ask_for_stacks()
        if leave_by is None and ranks.any_ended():
            leave_by = time.monotonic() + LEAVE_SECONDS
        if leave_by is not None and time.monotonic() > leave_by:
            say(f"a rank did not leave within {LEAVE_SECONDS:g} s of the first")
            break
        time.sleep(POLL_SECONDS)
    return ranks.failure()


def _wait(ranks: Ranks, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ranks.ended() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def name_culprit(
    run: RunDirectory, number: int, failure: Failure, layout: Layout, nodes: tuple[str, ...]
) -> Failure:
    """The failure of an attempt that hung, with the rank that the others waited for."""
    stacks = read_stacks(run, number, layout.size)
    culprit = find_culprit(stacks, layout.size)
    phases = [stack.phase for stack in stacks.values() if stack.phase]
    phase = failure.phase or (phases[0] if phases else None)
    if culprit is None or not stacks:
        return replace(failure, phase=phase)
    rank = culprit.ranks[0]
    node = nodes[rank // layout.ranks_per_node] if nodes else failure.node
    own = stacks[rank].phase if rank in stacks else None
    others = f" and {len(culprit.ranks) - 1} more" if len(culprit.ranks) > 1 else ""
    reason = f"rank {rank}{others} on {node} hung: {culprit.why}"
    return replace(failure, rank=rank, node=node, phase=own or phase, reason=reason)
