"""A rank without torch: counts steps in files, saves, and fails on demand.

Usage: fake_rank.py RUN_DIR STEPS [FAULT …] where FAULT is KIND:RANK:STEP[:TIMES]; kinds are kill,
raise, refuse, forget (leave without an outcome), hang, freeze (SIGSTOP), idle (before any sign of
life), inch (save one step further in each attempt, then raise) and bad_node (name its own node as
unfit). ``TIMES`` is how many attempts it happens in. Where FAKE_WATCHDOG_SECONDS is set, each rank
has the real watchdog, with that deadline for every phase.
"""

import os
import signal
import sys
import time
from pathlib import Path

from fake_pretrain.dist import meet, write

SAVE_EVERY = 10


def main() -> int:
    directory, total = Path(sys.argv[1]), int(sys.argv[2])
    rank, attempt = int(os.environ["RANK"]), int(os.environ["PRETRAIN_ATTEMPT"])
    flag = directory / f"stop_{attempt}"
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, lambda *_: flag.touch())
    checkpoints = directory / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    step = max((int(p.name[5:]) for p in checkpoints.glob("step_????????")), default=0)
    print(f"rank {rank} of {os.environ['WORLD_SIZE']} from step {step}, attempt {attempt}")
    print(f"local {os.environ['LOCAL_RANK']} of {os.environ['LOCAL_WORLD_SIZE']}")
    print(f"meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}")
    print(f"gpus {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    fail(rank, 0, attempt)
    watchdog = watch(directory, rank, attempt)
    while step < total:
        step += 1
        if watchdog is not None:
            watchdog.enter("step")
        time.sleep(float(os.environ.get("FAKE_STEP_SECONDS", "0.01")))
        fail(rank, step, attempt)
        stopping = meet(directory, rank, attempt, step, stop=rank == 0 and flag.exists())
        if rank == 0:
            write(directory / "progress.json", progress("training", step, total, attempt))
            if step % SAVE_EVERY == 0 or step == total or stopping:
                (checkpoints / f"step_{step:08d}").mkdir(exist_ok=True)
        if stopping and step < total:
            return leave(directory, rank, attempt, "stopped", step, total)
    return leave(directory, rank, attempt, "done", step, total)


def fail(rank: int, step: int, attempt: int) -> None:
    for fault in sys.argv[3:]:
        kind, who, when, *times = fault.split(":")
        if rank != int(who) or step != int(when) or attempt > int(times[0] if times else 1):
            continue
        print(f"fault {fault} at step {step}")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "raise":
            raise RuntimeError(f"planned at step {step}")
        elif kind == "refuse":
            sys.exit(2)
        elif kind == "forget":
            sys.exit(0)
        elif kind in ("hang", "idle"):
            time.sleep(600)
        elif kind == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)  # Slurm wakes what it ends
        elif kind == "inch":
            (Path(sys.argv[1]) / "checkpoints" / f"step_{step - 5 + attempt:08d}").mkdir()
            raise RuntimeError(f"planned again at step {step}")
        elif kind == "bad_node":
            name_own_node(rank, attempt)
            sys.exit(72)


def watch(directory: Path, rank: int, attempt: int):
    seconds = os.environ.get("FAKE_WATCHDOG_SECONDS")
    if seconds is None:
        return None
    from pretrain import watchdog
    from pretrain.config.guard import WatchdogConfig
    from pretrain.run_directory import RunDirectory
    from pretrain.world import node_name

    watchdog.LINGER_SECONDS = 2.0
    run = RunDirectory(directory)
    settings = WatchdogConfig.model_construct(start_seconds=60.0, step_seconds=float(seconds))
    first = os.environ["LOCAL_RANK"] == "0"
    heartbeat = run.heartbeat_path(attempt, node_name()) if first else None
    return watchdog.Watchdog(run.stacks_path(attempt, rank), settings, "start", heartbeat)


def name_own_node(rank: int, attempt: int) -> None:
    node = os.environ.get("SLURMD_NODENAME", "here")
    path = Path(sys.argv[1]) / "attempts" / f"{attempt:03d}" / "bad_ranks.json"
    write(path, {"bad_ranks": [{"rank": rank, "node": node, "why": "a matrix product is wrong"}]})


def leave(directory: Path, rank: int, attempt: int, outcome: str, step: int, total: int) -> int:
    if rank == 0:
        write(directory / "progress.json", progress(outcome, step, total, attempt))
        path = directory / "attempts" / f"{attempt:03d}" / "outcome.json"
        write(path, {"outcome": outcome, "step": step})
    return 0


def progress(state: str, step: int, total: int, attempt: int) -> dict[str, object]:
    return {
        "state": state,
        "step": step,
        "total_steps": total,
        "epoch": step / total,
        "images_per_second": 100.0,
        "loss": 1.0 / step,
        "eval_top1_fraction": 0.5 if state == "done" else None,
        "eta_seconds": (total - step) * 0.01,
        "last_checkpoint_step": None,
        "time": time.time(),
        "attempt": attempt,
    }


if __name__ == "__main__":
    sys.exit(main())
