"""What a trace is taken apart into. No torch. Times are microseconds, as in the trace."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PARTS = ("data", "augment", "forward", "loss", "backward", "optimizer", "evaluation", "save")
"""Ranges of a step, beside which the host does other things."""
BETWEEN = "between"
"""What is in no part: records, votes, checks."""
ELSEWHERE = "elsewhere"
"""The place of what the network does outside its named parts."""

Event = Mapping[str, Any]
"""One of the trace's, in Chrome's format."""


@dataclass(frozen=True, slots=True)
class Where:
    """What something belongs to.

    Attributes:
        part: one of `PARTS`, or `BETWEEN`.
        way: "forward", "backward", or "again" for what the backward pass computes once more.
        place: "stage 1", "patch merging 1", "head" …; "" outside the network or where unknown.
        unit: part of a block, such as "attention"; "" outside.
        kind: one of `kinds.KINDS`; "" while nothing decides it.
        name: of the range, operator or kernel that ran.
    """

    part: str = BETWEEN
    way: str = ""
    place: str = ""
    unit: str = ""
    kind: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Slice:
    """An interval in which one thing ran."""

    start: float
    end: float
    where: Where


@dataclass(frozen=True, slots=True)
class Allocation:
    """Memory that was taken, or given back: then with negative bytes.

    Attributes:
        time: when.
        address: which.
        size: bytes.
        where: what took it.
        device: 0 for the host, else torch's number of the kind of device.
        allocated: bytes that the allocator had given out in all after it.
    """

    time: float
    address: int
    size: int
    where: Where
    device: int
    allocated: int
