"""What the ranks of the saving tests do: saves beside training, their failures, their owners."""

import errno
import os
import time
from pathlib import Path
from typing import Any

from cases_checkpoint import LAST, equal, fake_save, listed
from cases_engine import make_engine, train

from pretrain import dist
from pretrain.checkpoint import commit, snapshot
from pretrain.checkpoint.ownership import take_over
from pretrain.checkpoint.resume import newest_valid, verify
from pretrain.checkpoint.store import CheckpointStore
from pretrain.errors import CheckpointError
from pretrain.world import World

_write, _fsync = snapshot.write_synced, os.fsync


def everything(world: World, folder: str) -> dict[str, Any]:
    root = Path(folder)
    found: dict[str, Any] = {"beside": beside(world, folder, 1)}
    found["failing"] = failing(world, root / "failing")
    found["defect"] = defect(world, root / "defect")
    found["fenced"] = fenced(world, root / "fenced")
    return found


def beside(world: World, folder: str, stage: int) -> dict[str, Any]:
    """Save after every step on a slow disk, so that steps and saves overlap; compare to neither."""
    root = Path(folder) / f"stage{stage}"
    twin = make_engine(world, stage, clip=1.0)
    states = []
    for step in range(LAST):
        train(twin, world, range(step, step + 1))
        states.append(twin.fragments())
    twin.close()

    def slow_sync(descriptor: int) -> None:
        time.sleep(0.05 * (1 + world.rank))
        _fsync(descriptor)

    os.fsync = slow_sync
    engine = make_engine(world, stage, clip=1.0)
    store = CheckpointStore(root, world=world, keep_last=LAST, background=True)
    overlapped = 0
    for step in range(LAST):
        train(engine, world, range(step, step + 1))
        save(store, engine, step + 1, wait=step + 1 == LAST)
        overlapped += not (root / f"step_{step + 1:08d}").exists()
        dist.barrier()
    same = equal(engine.fragments(), states[-1])
    engine.close()
    os.fsync = _fsync
    told = store.finished()
    resumed = []
    for step in range(1, LAST + 1):
        reader = verify(root / f"step_{step:08d}")
        again = make_engine(world, stage, clip=1.0, seed=99)
        again.load_fragments(reader.read, saved_shapes=reader.shapes, **reader.state)
        at_save = equal(again.fragments(), states[step - 1])
        train(again, world, range(step, LAST))
        resumed.append(at_save and equal(again.fragments(), states[-1]))
        again.close()
    return {
        "same": same,
        "overlapped": overlapped,
        "resumed": resumed,
        "told": [saved.step for saved in told],
        "waited": sum(saved.waited_seconds for saved in told),
        "written": min(saved.write_seconds for saved in told),
        "errors": [str(saved.error) for saved in told if saved.error],
    }


def save(store: CheckpointStore, engine: Any, step: int, *, wait: bool) -> None:
    store.save(
        step,
        engine.live_fragments(),
        shapes=engine.parameter_shapes(),
        state=engine.state(),
        samples_consumed=16 * step,
        config_sha256="c" * 64,
        classes=[],
        wait=wait,
    )


class BrokenDisk:
    """The ``os`` that a module sees, with one call that fails."""

    def __init__(self, call: str, number: int) -> None:
        self._call, self._number = call, number

    def __getattr__(self, name: str) -> Any:
        if name != self._call:
            return getattr(os, name)

        def fail(*_: object) -> None:
            raise OSError(self._number, os.strerror(self._number))

        return fail


FAULTS = {
    "full": ("write", errno.ENOSPC),
    "quota": ("write", errno.EDQUOT),
    "read_only": ("open", errno.EROFS),
    "stale": ("fsync", errno.ESTALE),
    "broken": ("fsync", errno.EIO),
}


def failing(world: World, directory: Path) -> dict[str, Any]:
    """Rank 1's disk fails during saves in the background; the ones after it find it mended."""
    store = CheckpointStore(directory, world=world, keep_last=2, background=True)
    fake_save(world, directory, 1, store=store)
    found: dict[str, Any] = {}
    for name, (call, number) in FAULTS.items():
        if world.rank == 1:
            snapshot.os = BrokenDisk(call, number)  # pyright: ignore[reportAttributeAccessIssue]
        fake_save(world, directory, 2, store=store, wait=False)
        told = store.finished()
        while not told or told[-1].step != 2:
            told += store.finished()
            time.sleep(0.01)
        snapshot.os = os
        found[name] = [type(told[-1].error).__name__, str(told[-1].error), listed(directory)]
        dist.barrier()
    fake_save(world, directory, 3, store=store, wait=False)
    fake_save(world, directory, 4, store=store)
    found["after"] = [listed(directory), [saved.step for saved in store.finished()]]
    return found


def defect(world: World, directory: Path) -> str:
    """An error nobody expects, on both ranks: the training thread must end with it."""

    def broken(path: Path, _: list[bytes]) -> str:
        raise ZeroDivisionError("a defect")

    snapshot.write_synced = broken
    store = CheckpointStore(directory, world=world, keep_last=2, background=True)
    fake_save(world, directory, 1, store=store, wait=False)
    try:
        fake_save(world, directory, 2, store=store)
    except ZeroDivisionError as error:
        return str(error)
    finally:
        snapshot.write_synced = _write
        dist.barrier()
    return ""


def fenced(world: World, directory: Path) -> dict[str, Any]:
    """A second attempt takes over while the first one writes, and between two of its saves."""
    first = CheckpointStore(directory, world=world, keep_last=1)
    fake_save(world, directory, 1, store=first)
    second = CheckpointStore(directory, world=world, keep_last=1)
    numbers = []
    if world.rank == 0:

        def take_over_then_write(path: Path, parts: list[bytes]) -> str:
            digest = _write(path, parts)
            if path.name == "manifest.json" and not numbers:
                numbers.append(take_over(directory, 1))
            return digest

        commit.write_synced = take_over_then_write
    messages = [refusal(world, directory, 2, first), refusal(world, directory, 3, first)]
    commit.write_synced = _write
    left = listed(directory)
    dist.barrier()
    fake_save(world, directory, 4, store=second)
    reader, refusals = newest_valid(directory)
    assert reader is not None
    return {
        "messages": messages,
        "left": left,
        "after": listed(directory),
        "attempt": reader.manifest.attempt,
        "refusals": refusals,
    }


def refusal(world: World, directory: Path, step: int, store: CheckpointStore) -> list[str]:
    try:
        fake_save(world, directory, step, store=store)
    except CheckpointError as error:
        return [type(error).__name__, str(error)]
    return []
