"""What was in memory when most was, and what each stage keeps for its backward pass. No torch."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretrain.profile.events import Allocation
from pretrain.profile.trace import Profile

ACTIVATIONS = "activations, "
"""Before the place that made them."""


@dataclass(frozen=True)
class Peak:
    """The moment at which most memory was in use.

    Attributes:
        part: of the step in which it came.
        bytes_by_kind: what had been taken since the profile's start and was in use then.
        before: in use when the profile started, as far as the allocator knows: it does on GPUs.
        kept: bytes by place that a forward pass leaves for the backward pass; mean over passes.
    """

    part: str
    bytes_by_kind: dict[str, int]
    before: int
    kept: dict[str, int]


@dataclass(frozen=True)
class _Piece:
    """A stretch of memory from its allocation until it was given back."""

    start: float
    end: float
    size: int
    kind: str


def find_peak(profile: Profile) -> Peak | None:
    """Find the moment of the peak; None where no memory was recorded."""
    if not profile.allocations:
        return None
    pieces = _pieces(profile)
    size, largest, moment = 0, 0, profile.allocations[0].time
    changes = [(piece.start, piece.size) for piece in pieces]
    changes += [(piece.end, -piece.size) for piece in pieces]
    for time, change in sorted(changes):
        size += change
        if size > largest:
            largest, moment = size, time
    by_kind: dict[str, int] = defaultdict(int)
    for piece in pieces:
        if piece.start <= moment < piece.end:
            by_kind[piece.kind] += piece.size
    first = profile.allocations[0]
    before = first.allocated - first.size if first.device else 0
    return Peak(_part_at(profile, moment), dict(by_kind), max(before, 0), _kept(profile, pieces))


def _part_at(profile: Profile, moment: float) -> str:
    inside = [name for start, end, name in profile.parts if start <= moment <= end]
    return inside[0] if inside else "between"


def _pieces(profile: Profile) -> list[_Piece]:
    """Every allocation of the profile with its end; infinity where it outlived the profile."""
    open_at: dict[int, Allocation] = {}
    pieces = []
    for one in profile.allocations:
        if one.size > 0:
            open_at[one.address] = one
            continue
        taken = open_at.pop(one.address, None)
        if taken is not None:
            pieces.append(_piece(profile, taken, one.time))
    pieces += [_piece(profile, taken, float("inf")) for taken in open_at.values()]
    return pieces


def _piece(profile: Profile, taken: Allocation, end: float) -> _Piece:
    outlives = end > _end_of_part(profile.parts, taken.time)
    return _Piece(taken.time, end, taken.size, _kind(taken, outlives))


def _end_of_part(parts: Sequence[tuple[float, float, str]], moment: float) -> float:
    """The end of the part of the step that holds a moment; the moment itself outside of any."""
    index = bisect_right(parts, moment, key=lambda part: part[0]) - 1
    return parts[index][1] if index >= 0 and parts[index][1] >= moment else moment


def _kind(taken: Allocation, outlives: bool) -> str:
    where = taken.where
    match where.part:
        case "data" | "augment":
            return "inputs and augmentation"
        case "forward" | "loss" if outlives:
            return ACTIVATIONS + (where.place or "elsewhere")
        case "forward" | "loss":
            return "temporary, forward pass"
        case "backward" if where.way == "again":
            return "computed again"
        case "backward":
            return "gradients, ZeRO's buckets" if outlives else "temporary, backward pass"
        case "optimizer":
            return "optimizer and ZeRO"
    return "elsewhere"


def _kept(profile: Profile, pieces: Sequence[_Piece]) -> dict[str, int]:
    passes = max(1, sum(name == "forward" for _, _, name in profile.parts))
    kept: dict[str, int] = defaultdict(int)
    for piece in pieces:
        if piece.kind.startswith(ACTIVATIONS):
            kept[piece.kind.removeprefix(ACTIVATIONS)] += piece.size
    return {place: size // passes for place, size in kept.items()}


def known_before(about: Mapping[str, int], peak: Peak) -> dict[str, int]:
    """What was there before the profile: the kinds that are known, and on GPUs the rest.

    Args:
        about: bytes by kind, as the run's profiler counted them.
        peak: of `find_peak`.
    """
    rest = peak.before - sum(about.values())
    return {**about, **({"elsewhere, before": rest} if rest > 0 else {})}
