"""From a trace of torch's profiler to intervals that say what ran where. No torch.

The trace has ranges (`pretrain.profile.ranges`), operators nested in them, and on GPUs kernels that
an operator launched. What the backward pass runs is in no range of the network: autograd says by a
number which forward operator each of its nodes came from, and that operator's place is the node's.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.errors import PretrainError
from pretrain.profile import kinds
from pretrain.profile.device import lay_out, with_idle_time, with_waits
from pretrain.profile.events import BETWEEN, Allocation, Event, Slice
from pretrain.profile.host import walk

METADATA = "pretrain"
"""Key of the trace under which a run's profiler says what it profiled."""
STEP = "ProfilerStep#"
_HOST = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver", "cpu_instant_event"}
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}


@dataclass(frozen=True)
class Profile:
    """A trace, taken apart.

    Attributes:
        about: what the run's profiler said of itself.
        steps: start and end of each step on the host.
        slices: what ran, one thing at a time, from the first step's start to the last one's end; on
            the device where there is one.
        parts: start, end and name of each part of a step on the host.
        flops: operations counted, by place and way.
        allocations: in order of time; of the device where there is one.
        on_device: whether the slices are the device's.
    """

    about: Mapping[str, Any]
    steps: list[tuple[float, float]]
    slices: list[Slice]
    parts: list[tuple[float, float, str]]
    flops: dict[tuple[str, str], int]
    allocations: list[Allocation]
    on_device: bool


def read_trace(path: Path) -> dict[str, Any]:
    """Read a trace as torch's profiler writes it, compressed or not.

    Raises:
        PretrainError: there is none.
    """
    try:
        data = path.read_bytes()
        trace = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, ValueError) as error:
        raise PretrainError(f"{path}: cannot be read as a trace: {error}") from None
    if not isinstance(trace, dict) or not isinstance(trace.get("traceEvents"), list):
        raise PretrainError(f"{path}: expected a trace of torch's profiler, found no traceEvents")
    return trace


def take_apart(trace: Mapping[str, Any]) -> Profile:
    """Find out what ran where.

    Raises:
        PretrainError: the trace holds no whole step.
    """
    by_thread, device = _sorted_out(trace["traceEvents"])
    main, steps = _steps(by_thread)
    first = walk(by_thread.pop(main))
    threads = [first, *(walk(events, first.creators) for events in by_thread.values())]
    start, end = steps[0][0], steps[-1][1]
    host = [piece for piece in first.slices if start <= piece.start < end]
    if device:
        end = max(end, max(event["ts"] + event["dur"] for event in device))
        slices = with_idle_time(lay_out(device, threads, start, end), host, end)
    else:
        collectives = [one for thread in threads[1:] for one in thread.collectives]
        slices = [_named(piece) for piece in with_waits(host, collectives)]
    flops: dict[tuple[str, str], int] = defaultdict(int)
    for thread in threads:
        for key, count in thread.flops.items():
            flops[key] += count
    allocations = [one for thread in threads for one in thread.allocations]
    counted = max((one.device for one in allocations), default=0)
    return Profile(
        about=trace.get(METADATA) or {},
        steps=steps,
        slices=slices,
        parts=sorted(first.parts),
        flops=dict(flops),
        allocations=sorted(
            (one for one in allocations if one.device == counted), key=lambda one: one.time
        ),
        on_device=bool(device),
    )


def _sorted_out(events: list[Event]) -> tuple[dict[Any, list[Event]], list[Event]]:
    """The host's events by thread, and the device's."""
    by_thread: dict[Any, list[Event]] = defaultdict(list)
    device = []
    for event in events:
        category = event.get("cat")
        if category in _HOST:
            by_thread[event["pid"], event["tid"]].append(event)
        elif category in _DEVICE:
            device.append(event)
    return by_thread, device


def _steps(by_thread: Mapping[Any, list[Event]]) -> tuple[Any, list[tuple[float, float]]]:
    """The thread that ran the steps, and their start and end."""
    for thread, events in by_thread.items():
        steps = [event for event in events if event["name"].startswith(STEP)]
        if steps:
            return thread, sorted((event["ts"], event["ts"] + event["dur"]) for event in steps)
    raise PretrainError("the trace holds no whole step of training")


def _named(piece: Slice) -> Slice:
    """What runs in a range but in no operator is the host's own work."""
    where = piece.where
    if where.kind:
        return piece
    kind = kinds.OTHER if where.part == BETWEEN else kinds.HOST
    return replace(piece, where=replace(where, kind=kind))
