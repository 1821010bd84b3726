"""What the ranks do in the tests of process groups."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from pretrain import dist
from pretrain.stop import StopRequest
from pretrain.world import World


def talk(world: World) -> dict[str, Any]:
    order = ["before"]
    dist.barrier()
    order.append("after")
    rank_zero = world.rank == 0
    return {
        # 2**53 + 2 is beyond fp32, and just within float64.
        "sum": dist.sum_across_ranks([1.0 + world.rank, 2.0**53 if rank_zero else 2.0]),
        "max": dist.max_across_ranks(7 if rank_zero else -9),
        "text": dist.broadcast_text("from rank zero: é✓" if rank_zero else None),
        "empty": dist.broadcast_text("" if rank_zero else "ignored"),
        "gathered": dist.gather_objects({"rank": world.rank, "pad": "x" * 5000 * world.rank}),
        "order": order,
    }


def stop_votes(world: World, folder: str) -> list[str | None]:
    """Rank 1 comes to its first boundary only when rank 0 is past it, and is then signalled."""
    passed = Path(folder) / "rank 0 is past its first boundary"
    stop = StopRequest()
    if world.rank == 1:
        while not passed.exists():
            time.sleep(0.01)
    votes = [stop.agreed()]
    passed.touch()
    votes.append(stop.agreed())
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGUSR2)
    return votes + [stop.agreed() for _ in range(3)]


def one_raises(world: World) -> None:
    if world.rank == 1:
        raise ValueError("rank 1 gives up")
    dist.barrier()


def sleep_forever(_: World) -> None:
    time.sleep(3600)
