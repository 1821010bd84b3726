"""What the device did, one thing at a time, and what the host waited for. No torch."""

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from heapq import heappop, heappush

from pretrain.profile import kinds
from pretrain.profile.events import Event, Slice, Where
from pretrain.profile.host import Thread

_ORDER = {kinds.COLLECTIVES: 2, kinds.COPIES: 1}
"""What hides behind what: of work at one time computing counts, then copies, then collectives."""


def lay_out(
    events: Iterable[Event], threads: Iterable[Thread], start: float, end: float
) -> list[Slice]:
    """What the device did in an interval without overlaps; where it did nothing is left out.

    Args:
        events: kernels, copies and fills, on any streams.
        threads: of the host, which launched them.
        start: of the interval.
        end: of the interval.
    """
    launches: dict[int, Where] = {}
    operators: dict[int, Where] = {}
    for thread in threads:
        launches |= thread.launches
        operators |= thread.operators
    pieces = []
    for event in events:
        told = event.get("args", {})
        where = launches.get(told.get("correlation", -1))
        if where is None:
            where = operators.get(told.get("External id", -1), Where())
        kind = kinds.kind_of_kernel(event["name"], event["cat"], where.kind)
        first, last = max(event["ts"], start), min(event["ts"] + event["dur"], end)
        if last > first:
            pieces.append(Slice(first, last, replace(where, kind=kind, name=event["name"])))
    return _without_overlaps(pieces)


def _without_overlaps(pieces: Sequence[Slice]) -> list[Slice]:
    """At each moment the piece that counts: by `_ORDER`, then whichever began first."""
    ordered = sorted(pieces, key=lambda piece: piece.start)
    moments = sorted({moment for piece in ordered for moment in (piece.start, piece.end)})
    active: list[tuple[int, float, int]] = []
    laid, upcoming = [], 0
    for moment, following in itertools.pairwise(moments):
        while upcoming < len(ordered) and ordered[upcoming].start <= moment:
            rank = _ORDER.get(ordered[upcoming].where.kind, 0)
            heappush(active, (rank, ordered[upcoming].start, upcoming))
            upcoming += 1
        while active and ordered[active[0][2]].end <= moment:
            heappop(active)
        if active:
            laid.append(Slice(moment, following, ordered[active[0][2]].where))
    return laid


def with_idle_time(busy: Sequence[Slice], host: Sequence[Slice], end: float) -> list[Slice]:
    """Add where the device did nothing, under the part of the step that the host was at.

    Args:
        busy: of `lay_out`.
        host: slices of the thread that ran the steps, from the first one's start on.
        end: of the interval; after the last slice the host waits for the device.
    """
    gaps, reached = [], host[0].start
    for piece in busy:
        if piece.start > reached:
            gaps.append((reached, piece.start))
        reached = piece.end
    if end > reached:
        gaps.append((reached, end))
    starts = [piece.start for piece in host]
    idle = []
    for start, stop in gaps:
        index = max(bisect_left(starts, start) - 1, 0)
        while start < stop:
            following = host[index + 1].start if index + 1 < len(host) else stop
            until = min(stop, max(following, start))
            if until > start:
                part = host[index].where.part
                where = Where(part=part, kind=kinds.IDLE, name=kinds.IDLE)
                idle.append(Slice(start, until, where))
                start = until
            index += 1
    return sorted([*busy, *idle], key=lambda piece: piece.start)


def with_waits(host: Sequence[Slice], collectives: Sequence[tuple[float, float]]) -> list[Slice]:
    """Say which of the host's time was waiting for collectives that other threads carried out.

    A wait runs no operator and is over when a collective is.

    Args:
        host: slices of the thread that ran the steps.
        collectives: start and end of each.
    """
    ordered = sorted(collectives, key=lambda collective: collective[1])
    ends = [end for _, end in ordered]
    split: list[Slice] = []
    for piece in host:
        found = bisect_left(ends, piece.start)
        while found < len(ends) and ends[found] <= piece.start:
            found += 1
        inside = found < len(ends) and ends[found] <= piece.end
        if not inside or not _is_wait(piece.where):
            split.append(piece)
            continue
        last = found
        while last + 1 < len(ends) and ends[last + 1] <= piece.end:
            last += 1
        begun = max(piece.start, min(start for start, _ in ordered[found : last + 1]))
        waiting = replace(piece.where, kind=kinds.COLLECTIVES, name="waiting for collectives")
        split += [
            one
            for one in (
                Slice(piece.start, begun, piece.where),
                Slice(begun, ends[last], waiting),
                Slice(ends[last], piece.end, piece.where),
            )
            if one.end > one.start
        ]
    return split


def _is_wait(where: Where) -> bool:
    """Whether a slice of the host's is a range's own time: nothing else can wait."""
    return "::" not in where.name
