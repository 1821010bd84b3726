"""What one thread of the host did: nested ranges and operators, taken apart. No torch."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pretrain.profile import kinds
from pretrain.profile.events import ELSEWHERE, PARTS, Allocation, Event, Slice, Where
from pretrain.profile.flops import flops_of

NODE = "autograd::engine::evaluate_function: "
"""How autograd's engine announces a node of the backward pass."""
_MEMORY = "[memory]"
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_SUMS = ("aten::add", "aten::add_")


@dataclass
class Thread:
    """One thread's share of a profile.

    Attributes:
        creators: what forward operator made each node of the backward pass, by autograd's number.
        slices: intervals by the innermost range or operator that ran.
        parts: start, end and name of each part of a step.
        launches: what launched the device's work, by correlation.
        operators: by the id that the device's work may name instead.
        flops: operations counted, by place and way.
        allocations: memory taken and given back, in order.
        collectives: start and end of each collective that this thread carried out.
    """

    creators: dict[int, Where] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    parts: list[tuple[float, float, str]] = field(default_factory=list)
    launches: dict[int, Where] = field(default_factory=dict)
    operators: dict[int, Where] = field(default_factory=dict)
    flops: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    allocations: list[Allocation] = field(default_factory=list)
    collectives: list[tuple[float, float]] = field(default_factory=list)


def walk(events: Iterable[Event], creators: Mapping[int, Where] | None = None) -> Thread:
    """Take a thread's events apart.

    Args:
        events: of one thread, in any order: ranges, operators, launches, allocations.
        creators: of the thread that ran the forward pass; None for that thread itself.
    """
    events = list(events)
    thread = Thread() if creators is None else Thread(dict(creators))
    outside = Where()
    if creators is not None and any(event["name"].startswith(NODE) for event in events):
        outside = _range("backward", outside)  # on GPUs autograd has a thread of its own
    stack: list[tuple[float, Where]] = []
    reached = 0.0

    def advance(to: float) -> None:
        """Give the time up to a moment to what was innermost, and close what has ended."""
        nonlocal reached
        while stack:
            end, where = stack[-1]
            until = min(end, to)
            if until > reached:
                thread.slices.append(Slice(reached, until, where))
                reached = until
            if end > to:
                break
            stack.pop()
        reached = max(reached, to)

    for event in sorted(events, key=lambda event: (event["ts"], -event.get("dur", 0.0))):
        advance(event["ts"])
        parent = stack[-1][1] if stack else outside
        if event["name"] == _MEMORY:
            thread.allocations.append(_allocation(event, parent))
        elif event["cat"] in _LAUNCHES:
            thread.launches[event.get("args", {}).get("correlation", 0)] = parent
        else:
            where = _enter(event, parent, thread)
            stack.append((event["ts"] + event["dur"], where))
    advance(float("inf"))
    return thread


def _enter(event: Event, parent: Where, thread: Thread) -> Where:
    """What an event that begins inside ``parent`` belongs to; notes what it tells besides."""
    name, arguments = event["name"], event.get("args", {})
    end = event["ts"] + event["dur"]
    if kinds.is_collective(name):
        thread.collectives.append((event["ts"], end))
    if event["cat"] == "user_annotation":
        where = _range(name, parent)
        if name in PARTS:
            thread.parts.append((event["ts"], end, name))
    elif name.startswith(NODE):
        where = _node(name, thread.creators.get(arguments.get("Sequence number", -1)))
    else:
        where = _operator(name, parent)
        if where.way == "forward" or where.part == "loss":
            # Of several with one number the last to start makes the node: the others only looked.
            thread.creators[arguments.get("Sequence number", -1)] = where
    thread.operators[arguments.get("External id", 0)] = where
    flops = flops_of(name, arguments)
    if flops:
        thread.flops[where.place, where.way] += flops
    return where


def _range(name: str, parent: Where) -> Where:
    if name in PARTS:
        way = name if name in ("forward", "backward") else ""
        return Where(part=name, way=way, kind=kinds.OF_PARTS.get(name, ""), name=name)
    if kinds.is_collective(name):
        return replace(parent, kind=kinds.COLLECTIVES, name=name)
    if parent.way and _is_place(name):
        place, _, rest = name.partition(" / ")
        way = "forward" if parent.part == "forward" else "again"
        return replace(
            parent, way=way, place=place, unit=rest.partition(" / ")[2], kind="", name=name
        )
    return replace(parent, name=name)


def _is_place(name: str) -> bool:
    return name.startswith(("stage ", "patch ", "head", "decoder"))


def _node(name: str, creator: Where | None) -> Where:
    """A node of the backward pass is where the forward operator was that it came from."""
    where = replace(creator or Where(), part="backward", way="backward", name=name)
    of_zero = name.endswith(("AccumulateGrad", "BackwardFunctionForModuleBackward"))
    return replace(where, kind=kinds.GRADIENTS) if of_zero else where


def _operator(name: str, parent: Where) -> Where:
    if kinds.is_collective(name):
        return replace(parent, kind=kinds.COLLECTIVES, name=name)
    if parent.name.startswith(NODE) and name in _SUMS:
        # The engine adds up what several users of one value send back.
        return replace(parent, kind=kinds.RESIDUAL, name=name)
    if parent.name == "backward":
        # Between autograd's nodes: what ZeRO does with the gradients that are there.
        return replace(parent, kind=kinds.GRADIENTS, name=name)
    if parent.kind and parent.kind != kinds.COMPILED:
        return replace(parent, name=name)
    if parent.part not in ("forward", "backward"):
        return replace(parent, kind=kinds.OTHER, name=name)
    if parent.name == "forward":
        parent = replace(parent, place=ELSEWHERE)
    kind = kinds.kind_of_operator(name, parent.place, parent.unit)
    vague = parent.kind == kinds.COMPILED and kind not in kinds.WITH_PRODUCTS
    return replace(parent, kind=kinds.COMPILED if vague else kind, name=name)


def _allocation(event: Event, where: Where) -> Allocation:
    told = event["args"]
    return Allocation(
        time=event["ts"],
        address=told["Addr"],
        size=told["Bytes"],
        where=where,
        device=told["Device Type"],
        allocated=told.get("Total Allocated", 0),
    )
