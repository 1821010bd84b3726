"""Torch process groups: one for tensors on the device, one on the CPU for control.

Every function that communicates must be called by every rank, in the same order. Values travel as
tensors and JSON text, never as pickles.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as torch_dist

from pretrain.errors import PretrainError, RefusedTogetherError
from pretrain.world import World, meeting_point

_POLL_SECONDS = 0.005

_control: torch_dist.ProcessGroup | None = None
_timeout: timedelta | None = None


def initialize(world: World, device: torch.device, timeout_seconds: int) -> None:
    """Join the other ranks. Every rank, once, before anything else here; waits for all of them.

    A world of one needs no environment. Several ranks meet at `meeting_point`.

    Args:
        world: the place of this process.
        device: ``cuda`` communicates tensors over NCCL (and this device becomes current), ``cpu``
            over gloo.
        timeout_seconds: longest wait of any collective before it fails.

    Raises:
        LaunchError: several ranks, and the environment does not say where they meet.
    """
    global _control, _timeout
    _timeout = timeout = timedelta(seconds=timeout_seconds)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    meeting: dict[str, Any] = {"store": torch_dist.HashStore()}  # pyright: ignore[reportPrivateImportUsage]
    if world.size > 1:
        host, port = meeting_point()
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
        meeting = {"init_method": "env://"}  # torchrun already serves the store there
    torch_dist.init_process_group(
        backend,
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
        **meeting,
    )
    _control = cast(torch_dist.ProcessGroup, torch_dist.new_group(backend="gloo", timeout=timeout))


def control_group() -> torch_dist.ProcessGroup:
    """Return the CPU (gloo) group of all ranks, for values that never see the device.

    Raises:
        RuntimeError: `initialize` was not called.
    """
    if _control is None:
        raise RuntimeError("pretrain.dist.initialize has not been called in this process")
    return _control


def sum_across_ranks(values: Sequence[float]) -> list[float]:
    """Add up each position over all ranks, in float64. Every rank."""
    total = torch.tensor(list(values), dtype=torch.float64)
    torch_dist.all_reduce(total, group=control_group())
    return total.tolist()


def largest_across_ranks(values: Sequence[float]) -> list[float]:
    """Return the largest of the ranks' numbers at each position, in float64. Every rank.

    What is not a number counts as infinite.
    """
    largest = torch.tensor(list(values), dtype=torch.float64).nan_to_num_(
        nan=float("inf"), posinf=float("inf"), neginf=float("-inf")
    )
    torch_dist.all_reduce(largest, op=torch_dist.ReduceOp.MAX, group=control_group())
    return largest.tolist()


def max_across_ranks(value: int) -> int:
    """Return the largest of the ranks' integers (int64). Every rank."""
    return start_max_across_ranks(value)()


def start_max_across_ranks(value: int) -> Callable[[], int]:
    """Begin `max_across_ranks` and return at once; the result waits for the others. Every rank."""
    largest = torch.tensor([value], dtype=torch.int64)
    work = torch_dist.all_reduce(
        largest, op=torch_dist.ReduceOp.MAX, group=control_group(), async_op=True
    )

    def result() -> int:
        assert work is not None  # noqa: S101 - for the type checker: only outsiders get None
        work.wait()
        return int(largest.item())

    return result


def new_control_group() -> torch_dist.ProcessGroup:
    """Return another CPU (gloo) group of all ranks, for one thread beside the main one. Every rank.

    With the timeout of the first.
    """
    group = torch_dist.new_group(backend="gloo", timeout=_timeout)
    barrier()  # a rank that died now would leave others waiting for its connection
    return cast(torch_dist.ProcessGroup, group)


def gather_objects(value: Any, *, group: torch_dist.ProcessGroup | None = None) -> list[Any]:
    """Return every rank's JSON-able value, in rank order, on every rank. Every rank.

    Values come back as JSON has them: tuples as lists, mapping keys as text.

    Args:
        value: of this rank.
        group: one of `new_control_group`, in the thread it was made for; None is the main thread's.
    """
    chosen = control_group() if group is None else group
    text = json.dumps(value).encode()
    length = torch.tensor([len(text)], dtype=torch.int64)
    _finish(torch_dist.all_reduce(length, torch_dist.ReduceOp.MAX, group=chosen, async_op=True))
    longest = int(length.item())
    # Length first, so that one gather of equal rows carries texts of any length.
    row = torch.zeros(8 + longest, dtype=torch.uint8)
    row[:8] = torch.frombuffer(bytearray(len(text).to_bytes(8, "little")), dtype=torch.uint8)
    row[8 : 8 + len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    rows = [torch.empty_like(row) for _ in range(torch_dist.get_world_size())]
    _finish(torch_dist.all_gather(rows, row, group=chosen, async_op=True))
    return [_read_row(bytes(other.numpy())) for other in rows]


def _finish(work: torch_dist.Work | None) -> None:
    """Wait for a collective; in another thread than the main one, in a way that an exit can end."""
    assert work is not None  # noqa: S101 - for the type checker: only outsiders get None
    while threading.current_thread() is not threading.main_thread() and not work.is_completed():
        time.sleep(_POLL_SECONDS)
    work.wait()


def _read_row(row: bytes) -> Any:
    length = int.from_bytes(row[:8], "little")
    return json.loads(row[8 : 8 + length])


def broadcast_text(text: str | None) -> str:
    """Return rank zero's text on every rank; the others' argument is ignored. Every rank.

    Raises:
        TypeError: rank zero gave no text.
    """
    rank_zero = torch_dist.get_rank() == 0
    if rank_zero and text is None:
        raise TypeError("broadcast_text: rank zero must give the text, got None")
    sent = (text or "").encode() if rank_zero else b""
    length = torch.tensor([len(sent)], dtype=torch.int64)
    torch_dist.broadcast(length, src=0, group=control_group())
    buffer = torch.zeros(int(length.item()), dtype=torch.uint8)
    if sent:
        buffer.copy_(torch.frombuffer(bytearray(sent), dtype=torch.uint8))
    if buffer.numel():
        torch_dist.broadcast(buffer, src=0, group=control_group())
    return bytes(buffer.numpy()).decode()


@contextmanager
def refusing_together() -> Iterator[None]:
    """Let a refusal on any rank end all of them, and rank zero alone say it. Every rank.

    What is done inside must not communicate. Any other error than a `PretrainError` leaves this
    rank at once, and the others fail as soon as they notice that it is gone.

    Raises:
        PretrainError: on rank zero, with every different refusal.
        RefusedTogetherError: on the others.
    """
    refusal: PretrainError | None = None
    try:
        yield
    except PretrainError as error:
        refusal = error
    agree(refusal)


def agree(refusal: PretrainError | None) -> None:
    """End like `refusing_together`, given what this rank has to refuse. Every rank."""
    texts = gather_objects(None if refusal is None else str(refusal))
    refusals = {text: rank for rank, text in reversed(list(enumerate(texts))) if text is not None}
    if not refusals:
        return
    if torch_dist.get_rank() != 0:
        raise RefusedTogetherError("rank zero says why")
    if refusal is not None and len(refusals) == 1:
        raise refusal
    said = (f"rank {rank}: {text}" for text, rank in sorted(refusals.items(), key=lambda x: x[1]))
    raise PretrainError("\n".join(said))


def barrier() -> None:
    """Wait until every rank is here. Every rank."""
    torch_dist.barrier(group=control_group())


def shutdown() -> None:
    """Leave the groups; does nothing where there are none. Every rank, at the end."""
    global _control
    _control = None
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()
