"""How long a step waited for collectives."""

import time
from collections.abc import Callable
from typing import Any

import torch


class Waits:
    """Times collectives: those that block from call to return, others where they are waited for.

    On the CPU it is the time that the calling thread spends there. On CUDA events are recorded
    before and after on the stream that the call is made from, which a collective holds up; they
    are read afterwards, so that no step waits for the device.

    Args:
        device: where the collectives' tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._mark: Callable[[], Any] = _cuda_event if cuda else time.perf_counter
        self._between: Callable[[Any, Any], float] = _cuda_seconds if cuda else _seconds
        self._marks: list[tuple[Any, Any]] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed; if it returns what can be waited for, so is that wait."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._mark()
            result = function(*args, **kwargs)
            self._marks.append((start, self._mark()))
            return _Work(result, self) if hasattr(result, "wait") else result

        return timed

    def seconds(self) -> float:
        """Return the sum so far; waits for the device up to the last of them."""
        return sum(self._between(start, end) for start, end in self._marks)


class _Work:
    """A collective under way, whose wait is timed."""

    def __init__(self, work: Any, waits: Waits) -> None:
        self._work = work
        self.wait = waits.around(work.wait)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _seconds(start: float, end: float) -> float:
    return end - start


def _cuda_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _cuda_seconds(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return start.elapsed_time(end) / 1000
