"""What the ranks of the checkpoint tests do: each function runs in every rank."""

import os
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from engine_parity import make_engine, mean_losses, train
from torch import Tensor

from pretrain import dist
from pretrain.checkpoint import snapshot
from pretrain.checkpoint.resume import newest_valid, newest_valid_for_all, verify
from pretrain.checkpoint.store import CheckpointStore
from pretrain.engine.engine import Engine
from pretrain.errors import CheckpointError
from pretrain.world import World

SAVED, LAST = 3, 5


def save(engine: Engine, world: World, directory: Path, step: int) -> None:
    CheckpointStore(directory, world=world, keep_last=3).save(
        step,
        engine.fragments(),
        shapes=engine.parameter_shapes(),
        state=engine.state(),
        samples_consumed=16 * step,
        config_sha256="c" * 64,
        classes=["n00000001"],
    )


def restore(engine: Engine, world: World, directory: Path) -> None:
    reader, refusals = newest_valid_for_all(directory, rank=world.rank)
    assert reader is not None, refusals
    engine.load_fragments(reader.read, saved_shapes=reader.shapes, **reader.state)


def listed(directory: Path) -> list[str]:
    """What is there beside the one owner's working directory, and what is left in that."""
    found = sorted(str(path.relative_to(directory)) for path in directory.rglob("*_*"))
    return [name for name in found if not re.fullmatch(r"attempt_\w+|step_\d+/.*", name)]


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def covers_once(engine: Engine) -> bool:
    """Whether the ranks' fragments hold every element of every parameter of each kind once."""
    seen = {
        (kind, name): torch.zeros(torch.Size(shape).numel(), dtype=torch.int64)
        for kind in ("master", "exp_avg", "exp_avg_sq")
        for name, shape in engine.parameter_shapes().items()
    }
    lengths = {key: part.numel() for key, part in engine.fragments().items()}
    for held in dist.gather_objects(lengths):
        for key, count in held.items():
            kind, name, start = key.split("|")
            seen[kind, name][int(start) : int(start) + count] += 1
            assert int(start) + count <= len(seen[kind, name])
    return all(bool((count == 1).all()) for count in seen.values())


def write_runs(world: World, folder: str, runs: list[list[Any]]) -> dict[str, Any]:
    """Train, save, go on; then a fresh engine resumes and must go on the same way."""
    found: dict[str, Any] = {}
    accumulation = 2 // world.size  # the same micro-batches in any world
    for stage, precision in runs:
        root = Path(folder) / f"world{world.size}_{precision}{stage}"
        settings: dict[str, Any] = {"accumulation": accumulation, "clip": 1.0}
        engine = make_engine(world, stage, precision=precision, **settings)
        covered_at_start = covers_once(engine)
        train(engine, world, range(SAVED), accumulation)
        save(engine, world, root, SAVED)
        at_save = engine.fragments()
        results = train(engine, world, range(SAVED, LAST), accumulation)
        losses, at_end, state = mean_losses(results), engine.fragments(), engine.state()
        save(engine, world, Path(folder) / f"{root.name}_end", LAST)
        engine.close()
        twin = make_engine(world, stage, precision=precision, seed=99, **settings)
        restore(twin, world, root)
        loaded = equal(twin.fragments(), at_save)
        results = train(twin, world, range(SAVED, LAST), accumulation)
        found[f"{precision}{stage}"] = {
            "covered": covered_at_start and covers_once(twin),
            "loaded": loaded,
            "bitwise": equal(twin.fragments(), at_end) and mean_losses(results) == losses,
            "state": [twin.state(), state],
            "losses": losses,
        }
        twin.close()
    return found


def continue_runs(world: World, folder: str, pairs: list[list[Any]]) -> None:
    """Resume another run's checkpoint in this world and stage, train on, save the end."""
    accumulation = 2 // world.size
    for source, stage in pairs:
        engine = make_engine(world, stage, accumulation=accumulation, clip=1.0, seed=99)
        restore(engine, world, Path(folder) / source)
        train(engine, world, range(SAVED, LAST), accumulation)
        end = f"{source}_to_world{world.size}_stage{stage}"
        save(engine, world, Path(folder) / end, LAST)
        engine.close()


def continue_to(world: World, folder: str, jobs: list[list[Any]]) -> None:
    """Resume checkpoints in this world and in given stages, train to a step, save."""
    accumulation = max(1, 2 // world.size)
    for source, stage, last, end in jobs:
        reader = verify(Path(folder) / source)
        engine = make_engine(world, stage, accumulation=accumulation, clip=1.0, seed=99)
        engine.load_fragments(reader.read, saved_shapes=reader.shapes, **reader.state)
        assert covers_once(engine)
        train(engine, world, range(reader.step, last), accumulation)
        save(engine, world, Path(folder) / end, last)
        engine.close()


def fake_save(
    world: World,
    directory: Path,
    step: int,
    *,
    elements: int = 1000,
    store: CheckpointStore | None = None,
    wait: bool = True,
) -> None:
    """Save two parameters without an engine, one half on each rank."""
    share = elements // world.size
    part = torch.full((share,), float(step))
    start = world.rank * share
    fragments = {
        f"{kind}|{name}|{start}": part.clone()
        for kind in ("master", "exp_avg", "exp_avg_sq")
        for name in ("a.weight", "b.weight")
    }
    store = store or CheckpointStore(directory, world=world, keep_last=1)
    store.save(
        step,
        fragments,
        shapes={"a.weight": (elements,), "b.weight": (elements,)},
        state={"optimizer_step": step},
        samples_consumed=step,
        config_sha256="c" * 64,
        classes=[],
        wait=wait,
    )


def disk_errors(
    world: World, directory: Path, failing_rank: int, limit: int, elements: int
) -> dict[str, Any]:
    """One rank's file system refuses to write more than ``limit`` bytes in a file, then mends."""
    fake_save(world, directory, 1, elements=elements)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if world.rank == failing_rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    message = ""
    try:
        fake_save(world, directory, 2, elements=elements)
    except CheckpointError as error:
        message = str(error)
    dist.barrier()
    left = listed(directory)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    dist.barrier()
    fake_save(world, directory, 3, elements=elements)
    after = listed(directory)
    return {"message": message, "left": left, "after": after}


def faults(world: World, folder: str) -> dict[str, Any]:
    """Every fault that leaves both ranks alive."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    root = Path(folder)
    return {
        "tensors": disk_errors(world, root / "tensors", 1, 2000, 1000),
        "manifest": disk_errors(world, root / "manifest", 0, 1050, 40),
        "listing": unreadable(world, root / "a file"),
        "same_step": same_step(world, root / "same"),
        "gap": gap(world, root / "gap"),
    }


def same_step(world: World, directory: Path) -> list[bool]:
    """Save a step twice, then again after one of its files is damaged."""
    stamps = []
    for _ in range(2):
        fake_save(world, directory, 1)
        stamps.append((directory / "step_00000001" / "manifest.json").stat().st_ino)
    path = directory / "step_00000001" / "rank_00001.safetensors"
    if world.rank == 1:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    dist.barrier()
    refused = newest_valid(directory)[0] is None
    dist.barrier()
    fake_save(world, directory, 1)
    return [stamps[0] == stamps[1], refused, newest_valid(directory)[0] is not None]


def gap(world: World, directory: Path) -> str:
    """Ranks whose fragments leave out an element must not be able to commit."""
    try:
        fake_save(world, directory, 1, elements=41)
    except CheckpointError as error:
        return str(error)
    return ""


def unreadable(world: World, path: Path) -> str:
    """Rank zero cannot list the checkpoints: every rank must hear of it."""
    if world.rank == 0:
        path.write_text("")
    dist.barrier()
    try:
        newest_valid_for_all(path, rank=world.rank)
    except CheckpointError as error:
        return str(error)
    return ""


def killed_mid_save(world: World, folder: str) -> None:
    """Rank 1 dies by SIGKILL with half of its file written."""
    fake_save(world, Path(folder), 1)
    if world.rank == 1:

        def die(path: Path, parts: list[bytes]) -> None:
            path.write_bytes(parts[0][: len(parts[0]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        snapshot.write_synced = die
    fake_save(world, Path(folder), 2)


def save_again(world: World, folder: str, step: int) -> list[str]:
    fake_save(world, Path(folder), step)
    return listed(Path(folder))


def crash_points(_: World, folder: str, stride: int) -> dict[str, Any]:
    """Save in a child that dies by SIGKILL at the n-th line of the store, for every stride-th n."""
    dist.shutdown()  # each child joins a group of its own
    found: dict[str, Any] = {"points": 0, "newest": [], "bad": []}
    point = 1
    while True:
        directory = Path(folder) / str(point)
        child = os.fork()
        if child == 0:
            dist.initialize(World(), torch.device("cpu"), timeout_seconds=60)
            fake_save(World(), directory, 1)
            _die_at_line(point)
            fake_save(World(), directory, 2)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        reader, refusals = newest_valid(directory)
        if reader is None or refusals:
            found["bad"].append([point, refusals])
        else:
            found["newest"].append(reader.step)
            _check_next_save(directory, reader.step, found, point)
        if not os.WIFSIGNALED(status):
            found["exit"] = os.waitstatus_to_exitcode(status)
            return found
        found["points"] += 1
        point += stride


def _die_at_line(point: int) -> None:
    left = point

    def on_line(frame: Any, event: str, _argument: Any) -> Any:
        nonlocal left
        if "/pretrain/checkpoint/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    sys.settrace(on_line)


def _check_next_save(directory: Path, newest: int, found: dict[str, Any], point: int) -> None:
    """A later save must succeed and leave itself alone in the directory."""
    child = os.fork()
    if child == 0:
        dist.initialize(World(), torch.device("cpu"), timeout_seconds=60)
        fake_save(World(), directory, newest + 1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    names = listed(directory)
    if status != 0 or names != [f"step_{newest + 1:08d}"]:
        found["bad"].append([point, status, names])


def world_of_one(
    world: World, folder: str, runs: list[list[Any]], pairs: list[list[Any]]
) -> dict[str, Any]:
    """Write runs and continue others in one process, which takes most of its time to start."""
    continue_runs(world, folder, pairs)
    return write_runs(world, folder, runs)
