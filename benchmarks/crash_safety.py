"""Kills ranks at every system call of a save that changes a file, and looks what is left.

python benchmarks/crash_safety.py [--stride 1] [--engine-points 36] [--deepspeed-points 60] [--shim]
python benchmarks/crash_safety.py --quick [--stride 12]

For ZeRO stages 1 to 3, saves that training waits for and saves beside it, each of two ranks as the
target, and the target alone or all ranks killed. Each point must leave the newest sound checkpoint
to the bit as the uninterrupted twin had it, without a refusal, and the next attempt must save.
A sample runs with the whole engine, and trains on to the twin's last bit. The same harness then
kills DeepSpeed's own ``save_checkpoint``.
"""

import argparse
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import crash_states
import torch
from crash_states import LAST, NEW, OLD, RANKS, Prepared, Stage, join, make_engine, train_to
from crash_tally import Tally
from kill_points import Point, has_strace, kill_at, list_points, run_to_end

from pretrain.checkpoint import snapshot
from pretrain.checkpoint import store as store_module
from pretrain.checkpoint.agreement import Agreement
from pretrain.checkpoint.commit import Commit
from pretrain.checkpoint.layout import directory_name
from pretrain.checkpoint.ownership import areas
from pretrain.checkpoint.resume import newest_valid
from pretrain.checkpoint.store import CheckpointStore

CHUNK_BYTES = 4096
"""Of one write, in the harness: a small state is then written in as many calls as a large one."""
STAGES: tuple[Stage, ...] = (1, 2, 3)
SHIM_POINTS = 400
"""More than any save has; the shim's sweep ends where no kill happens."""


def sweep(
    prepared: Prepared,
    folder: Path,
    *,
    background: bool,
    target: int,
    all_ranks: bool,
    stride: int = 1,
    offset: int = 0,
    shim: bool = False,
) -> Tally:
    """Kill at every ``stride``-th point of a save of prepared states; see the module."""
    tally = Tally()
    root = folder / "checkpoints"
    work = partial(_save_new, prepared, root, background)

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(prepared.directory / directory_name(OLD), root / directory_name(OLD))

    fresh()
    points = [("any", number) for number in range(1, SHIM_POINTS)]
    if not shim:
        points = list_points(work, root, target)

    for point in points[offset::stride]:
        fresh()
        death = kill_at(work, root, target, point, all_ranks=all_ranks, shim=shim)
        if not death.killed:
            if shim:
                break
            continue  # the sequence of calls was shorter by one that time
        where = f"background {background}, rank {target}, point {point}, all {all_ranks}"
        tally.add(_outcome(prepared, root), death.survivor, where)
    return tally


def _save_new(
    prepared: Prepared,
    root: Path,
    background: bool,
    rank: int,
    ranks: int,
    gate: Callable[[], None],
) -> None:
    """What a rank does: take over and save; in the background only the save is in danger."""
    snapshot._CHUNK_BYTES = CHUNK_BYTES
    world = join(rank, ranks)
    store = CheckpointStore(root, world=world, keep_last=1, background=background)
    if background:
        store.claim()
        _gate_in_thread(gate)
        prepared.save(store, rank, NEW, wait=False)
        while not (told := store.finished()):
            time.sleep(0.002)
        if told[0].error is not None:
            raise told[0].error
    else:
        gate()
        prepared.save(store, rank, NEW, wait=True)


def _gate_in_thread(gate: Callable[[], None]) -> None:
    """Let the next save pass the gate in its own thread."""
    run = store_module._run

    def gated(commit: Commit, agreement: Agreement) -> store_module.Finished:
        gate()
        return run(commit, agreement)

    store_module._run = gated


def _outcome(prepared: Prepared, root: Path) -> str:
    """What is left, in words; `Tally` knows the good ones."""
    reader, refusals = newest_valid(root)
    if refusals:
        return f"refused: {refusals[0]}"
    if reader is None:
        return "no checkpoint"
    if not prepared.equals(reader):
        return f"step {reader.step} with other values"
    following = reader.step + 1

    def save_next(rank: int, ranks: int, gate: Callable[[], None]) -> None:
        store = CheckpointStore(root, world=join(rank, ranks), keep_last=1)
        gate()
        prepared.save(store, rank, following, wait=True)

    codes = run_to_end(save_next)
    newest, _ = newest_valid(root)
    left = sorted(path.name for path in root.iterdir())
    owner = areas(root)[-1].name
    inside = sorted(path.name for path in (root / owner).iterdir())
    if codes != [0] * RANKS or newest is None or not prepared.equals(newest):
        return f"the next attempt could not save ({codes})"
    if left != [owner, directory_name(following)] or inside != ["owner.json"]:
        return f"the next attempt left {left} {inside}"
    return f"step {reader.step}"


def prepare(folder: Path, stage: Stage) -> Prepared:
    """Train two ranks in processes of their own and keep every step's state."""
    directory = folder / f"stage{stage}"
    codes = run_to_end(partial(_in_rank, crash_states.make_states, (directory, stage)))
    if codes != [0] * RANKS:
        raise RuntimeError(f"preparing stage {stage} ended with {codes}")
    return Prepared(directory)


def _in_rank(
    function: Callable[..., None], arguments: tuple[object, ...], rank: int, ranks: int,
    gate: Callable[[], None],
) -> None:  # fmt: skip
    _quiet()
    gate()
    function(rank, ranks, *arguments)


def _quiet() -> None:
    """DeepSpeed writes to standard output what nobody asked for."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if "KILL_POINTS_VERBOSE" not in os.environ:
        os.dup2(null, 2)


def engine_sample(prepared: Prepared, folder: Path, stage: Stage, points_wanted: int) -> Tally:
    """Kill saves of a training engine, then train on from what is left to the twin's last bit."""
    tally = Tally()
    root, out = folder / "checkpoints", folder / "resumed"
    combinations = [(bg, target) for bg in (False, True) for target in range(RANKS)]
    for background, target in combinations:
        work = partial(_train_and_save, root, stage, background)
        shutil.rmtree(root, ignore_errors=True)
        points = list_points(work, root, target)
        for point in _spread(points, points_wanted // len(combinations)):
            shutil.rmtree(root, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
            death = kill_at(work, root, target, point, all_ranks=False, shim=False)
            reader, refusals = newest_valid(root)
            outcome = f"refused or nothing: {refusals}"
            if reader is not None and not refusals and prepared.equals(reader):
                arguments = (reader.directory, stage, out)
                codes = run_to_end(partial(_in_rank, crash_states.resume_engine, arguments))
                end, _ = newest_valid(out)
                same = end is not None and end.step == LAST and prepared.equals(end)
                outcome = f"step {reader.step}" if same else f"resumed to other bits ({codes})"
            where = f"engine, background {background}, rank {target}, point {point}"
            tally.add(outcome, death.survivor, where)
    return tally


def _spread(points: list[Point], wanted: int) -> list[Point]:
    """Return some points, evenly spread from the first to the last."""
    steps = max(1, wanted - 1)
    return [points[round(n * (len(points) - 1) / steps)] for n in range(wanted)]


def _train_and_save(
    root: Path, stage: Stage, background: bool, rank: int, ranks: int, gate: Callable[[], None]
) -> None:
    _quiet()
    snapshot._CHUNK_BYTES = CHUNK_BYTES
    world = join(rank, ranks)
    engine = make_engine(world, stage)
    store = CheckpointStore(root, world=world, keep_last=1, background=background)
    train_to(engine, world, 0, OLD)
    crash_states.save_engine(store, engine, OLD)
    store.finished()
    train_to(engine, world, OLD, NEW)
    if background:
        _gate_in_thread(gate)
    else:
        gate()
    crash_states.save_engine(store, engine, NEW, wait=not background)
    if background:
        train_to(engine, world, NEW, LAST)  # while it is being written
        while not store.finished():
            time.sleep(0.002)


def deepspeed_sample(prepared: Prepared, folder: Path, stage: Stage, points_wanted: int) -> Tally:
    """The same kills in DeepSpeed's own save; its own load then says what is left."""
    tally = Tally()
    root = folder / "deepspeed"
    for target in range(RANKS):
        work = partial(_train_and_save_natively, root, stage)
        shutil.rmtree(root, ignore_errors=True)
        points = list_points(work, root, target)
        for point in _spread(points, points_wanted // RANKS):
            shutil.rmtree(root, ignore_errors=True)
            death = kill_at(work, root, target, point, all_ranks=True, shim=False)
            answers = folder / "answers"
            shutil.rmtree(answers, ignore_errors=True)
            answers.mkdir()
            load = partial(_load_natively, prepared, root, answers, stage)
            codes = run_to_end(load)
            said = [path.read_text() for path in sorted(answers.iterdir())]
            good = codes == [0] * RANKS and len(set(said)) == 1
            outcome = said[0] if good else "cannot be loaded"
            tally.add(outcome, death.survivor, f"deepspeed, rank {target}, point {point}")
    return tally


def _train_and_save_natively(
    root: Path, stage: Stage, rank: int, ranks: int, gate: Callable[[], None]
) -> None:
    _quiet()
    world = join(rank, ranks)
    engine = make_engine(world, stage)
    train_to(engine, world, 0, OLD)
    engine._zero.save_checkpoint(str(root), tag=f"step{OLD}", client_state={"step": OLD})
    train_to(engine, world, OLD, NEW)
    gate()
    engine._zero.save_checkpoint(str(root), tag=f"step{NEW}", client_state={"step": NEW})


def _load_natively(
    prepared: Prepared, root: Path, answers: Path, stage: Stage, rank: int, ranks: int,
    gate: Callable[[], None],
) -> None:  # fmt: skip
    """Say in a file which step was loaded, if its masters are the twin's."""
    _quiet()
    gate()
    signal.alarm(60)
    world = join(rank, ranks)
    engine = make_engine(world, stage)
    path, client = engine._zero.load_checkpoint(str(root))
    step = client["step"] if path else 0
    same = step in (OLD, NEW) and all(
        torch.equal(value, prepared.fragment(step, rank, key))
        for key, value in engine.fragments().items()
    )
    answer = f"step {step}" if same else "starts anew" if not path else "other values"
    (answers / str(rank)).write_text(answer)


def campaign(folder: Path, options: argparse.Namespace) -> Tally:
    """Run everything and print the tables."""
    header = "| campaign | kill points | recovered | to the old | to the new | lost | left | hung |"
    print(header + "\n|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    total = Tally()
    prepared = {stage: prepare(folder, stage) for stage in STAGES}
    for stage in STAGES:
        for background in (False, True):
            tally = Tally()
            for target in range(RANKS):
                for all_ranks in (False, True):
                    tally += sweep(
                        prepared[stage], folder, background=background, target=target,
                        all_ranks=all_ranks, stride=options.stride, shim=options.shim,
                    )  # fmt: skip
            how = "beside training" if background else "waited for"
            print(tally.row(f"stage {stage}, {how}"), flush=True)
            total += tally
    print(total.row("**all**"), flush=True)
    for name, points, function in (
        ("whole engine", options.engine_points, engine_sample),
        ("DeepSpeed's save_checkpoint", options.deepspeed_points, deepspeed_sample),
    ):
        tally = Tally()
        for stage in STAGES if points else ():
            tally += function(prepared[stage], folder, stage, points // len(STAGES))
        print(tally.row(name), flush=True)
        for what, count in tally.outcomes.most_common():
            print(f"    {name}: {what}: {count}")
        total.wrong += [] if "DeepSpeed" in name else tally.wrong
    for wrong in total.wrong:
        print("WRONG", wrong)
    return total


def quick(folder: Path, options: argparse.Namespace) -> Tally:
    """Sweep states that no engine made, one combination of everything after the other."""
    directory = folder / "noise"
    run_to_end(partial(_in_rank, crash_states.make_noise, (directory,)))
    prepared, total = Prepared(directory), Tally()
    for number, background in enumerate((False, True)):
        for target in range(RANKS):
            total += sweep(
                prepared, folder, background=background, target=target,
                all_ranks=number == target, stride=options.stride,
                offset=number + target, shim=options.shim,
            )  # fmt: skip
    print(total.row("quick"))
    for wrong in total.wrong:
        print("WRONG", wrong)
    return total


def main() -> None:
    """Print the tables and what they were measured with; exit 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--engine-points", type=int, default=36)
    parser.add_argument("--deepspeed-points", type=int, default=60)
    parser.add_argument("--shim", action="store_true", help="kill in Python, in mid-write")
    parser.add_argument("--quick", action="store_true", help="without any engine")
    options = parser.parse_args()
    if not has_strace() and not options.shim:
        sys.exit("strace is missing or may not trace here; give --shim")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = quick if options.quick else campaign
        total = run(Path(folder), options)
    strace = subprocess.run(["strace", "-V"], capture_output=True, text=True, check=False).stdout
    print(
        f"{time.monotonic() - began:.0f} s on {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, torch {torch.__version__}, deepspeed "
        f"{importlib.metadata.version('deepspeed')}, {strace.splitlines()[0] if strace else ''}"
    )
    sys.exit(1 if total.wrong or not total.points else 0)


if __name__ == "__main__":
    main()
