"""Which rank of a run that no longer moves is at fault, from the stacks that the ranks wrote."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretrain.run_directory import RunDirectory
from pretrain.watchdog import STOOD_STILL

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):$")
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$')
_HUNG = re.compile(r"^hung: (?P<phase>\w+) took more than")
_WAITS_FOR_PEERS = ("torch/distributed/", "pretrain/dist.py", "deepspeed/comm/")
WAITING_FRAMES = 6
"""Innermost frames among which a rank that waits for the others shows it."""
SHOWN_FRAMES = 6


@dataclass(frozen=True)
class Stack:
    """Where one rank stood.

    Attributes:
        frames: of its main thread, the innermost first, as ``file:line function``.
        phase: what took too long by its own watchdog; None where it wrote because it was asked.
        stopped: whether it found that its process did not run for most of that time.
    """

    frames: tuple[str, ...]
    phase: str | None
    stopped: bool = False

    @property
    def waits_for_peers(self) -> bool:
        """Whether it stood in something that ends only when the other ranks take part."""
        inner = self.frames[:WAITING_FRAMES]
        return any(part in frame for frame in inner for part in _WAITS_FOR_PEERS)


def read_stack(text: str) -> Stack | None:
    """The main thread of the newest dump in a file; None where there is none."""
    frames: list[str] = []
    phase = None
    stopped = False
    for line in text.splitlines():
        if (hung := _HUNG.match(line)) and phase is None:
            phase = hung["phase"]
            stopped = STOOD_STILL in line
        elif _THREAD.match(line):
            frames = []  # the main thread is the oldest and comes last
        elif frame := _FRAME.match(line):
            frames.append(f"{frame['file']}:{frame['line']} {frame['function']}")
    return Stack(tuple(frames), phase, stopped) if frames else None


def read_stacks(run: RunDirectory, number: int, size: int) -> dict[int, Stack]:
    """The stacks that the ranks of an attempt wrote, by rank."""
    stacks = {}
    for rank in range(size):
        try:
            text = run.stacks_path(number, rank).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        stack = read_stack(text)
        if stack is not None:
            stacks[rank] = stack
    return stacks


@dataclass(frozen=True)
class Culprit:
    """The ranks at fault, most likely one, and how they stand out."""

    ranks: tuple[int, ...]
    why: str


def find_culprit(stacks: Mapping[int, Stack], size: int) -> Culprit | None:
    """Name the ranks that the others waited for; None where they cannot be told apart.

    A rank that wrote nothing is stopped or gone. Slurm wakes what it ends: one that was stopped may
    still write, and that it was. Else those that do not wait for their peers, where the others do.
    Else those that stand elsewhere than most.
    """
    silent = tuple(rank for rank in range(size) if rank not in stacks)
    if silent and stacks:
        return Culprit(silent, "wrote no stacks: it is stopped, or its node is gone")
    stopped = tuple(rank for rank, stack in stacks.items() if stack.stopped)
    if stopped and len(stopped) < len(stacks):
        return Culprit(stopped, STOOD_STILL)
    busy = tuple(rank for rank, stack in stacks.items() if not stack.waits_for_peers)
    if busy and len(busy) < len(stacks):
        where = stacks[busy[0]].frames[0]
        return Culprit(busy, f"stood at {where} while the others waited for it")
    for depth in (1, None):
        odd = _odd(stacks, depth)
        if odd:
            return Culprit(odd, f"stood at {stacks[odd[0]].frames[0]}, unlike most")
    return None


def innermost(stack: Stack) -> Sequence[str]:
    """A stack's innermost frames, for people."""
    return stack.frames[:SHOWN_FRAMES]


def _odd(stacks: Mapping[int, Stack], depth: int | None) -> tuple[int, ...]:
    """Ranks whose innermost frames are not those of more than half; none where nothing is."""
    counts = Counter(stack.frames[:depth] for stack in stacks.values())
    common, count = next(iter(counts.most_common(1)), ((), 0))
    if 2 * count <= len(stacks):
        return ()
    return tuple(rank for rank, stack in stacks.items() if stack.frames[:depth] != common)
