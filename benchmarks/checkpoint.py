"""What saving and loading cost, against torch.save and DeepSpeed's own, on the same engine.

python benchmarks/checkpoint.py [--rounds 5] [--stage 1] [--embed-dim 96]

Two gloo ranks train a Swin-T; in every round each way of saving takes the state in turn, to the
same disk, while training goes on, and is loaded again. ``held``: the call that saves, of the slower
rank. ``lost``: how much longer the call and the next steps took than as many steps without it, so
that what a thread beside training takes from it counts too. ``safe``: until the state is on the
disk and a resume would find it. torch.save writes the engine's fragments, a file per rank, and
syncs it; DeepSpeed syncs nothing. Loading verifies digests in ours, nothing in the others. Ratios
are within a round.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pretrain import dist
from pretrain.checkpoint.resume import newest_valid_for_all
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.schema import EngineConfig, ModelConfig, OptimConfig
from pretrain.engine.engine import Engine
from pretrain.models.build import build
from pretrain.world import World, world_from_environment

RANKS, BATCH, STEPS = 2, 4, 5
OURS_BESIDE, OURS_WAITED, TORCH, DEEPSPEED = (
    "**this, beside training**",
    "this, waited for",
    "torch.save + fsync",
    "DeepSpeed save_checkpoint",
)


class Bench:
    """One rank's engine and the ways to save it."""

    def __init__(self, world: World, stage: Any, embed_dim: int, folder: Path) -> None:
        self.world, self.folder = world, folder
        torch.manual_seed(0)
        model = build(
            ModelConfig(
                variant="swin_t", image_size=64, window_size=2, num_classes=1000,
                embed_dim=embed_dim,
            )
        )  # fmt: skip
        self.engine = Engine(
            model,
            engine=EngineConfig(zero_stage=stage, precision="fp32"),
            optim=OptimConfig(lr=1e-3),
            micro_batch=BATCH // world.size,
            accumulation=1,
            device=torch.device("cpu"),
            world=world,
            undecayed=model.no_weight_decay_names(),
        )
        self.stores = {
            background: CheckpointStore(
                folder / f"ours_{background}", world=world, keep_last=1, background=background
            )
            for background in (False, True)
        }
        for store in self.stores.values():
            store.claim()

    def train(self) -> None:
        """Take some steps."""
        share = BATCH // self.world.size
        for _ in range(STEPS):
            images, targets = torch.randn(share, 3, 64, 64), torch.eye(1000)[:share]
            self.engine.train_step([(images, targets)], lr=1e-4)

    def save_ours(self, step: int, *, background: bool) -> dict[str, float]:
        """Return seconds held; `until_safe` tells the others."""
        store = self.stores[background]
        began = time.perf_counter()
        store.save(
            step,
            self.engine.live_fragments(),
            shapes=self.engine.parameter_shapes(),
            state=self.engine.state(),
            samples_consumed=step,
            config_sha256="c" * 64,
            classes=[],
            wait=not background,
        )
        return {"held": time.perf_counter() - began}

    def until_safe(self, *, background: bool) -> float:
        """Return the seconds that the last save took from the copy to the commit."""
        while not (told := self.stores[background].finished()):
            time.sleep(0.001)
        return told[0].write_seconds

    def load_ours(self, *, background: bool) -> None:
        """Choose, verify and take up the newest checkpoint."""
        directory = self.folder / f"ours_{background}"
        reader, refusals = newest_valid_for_all(directory, rank=self.world.rank)
        assert reader is not None, refusals
        self.engine.load_fragments(reader.read, saved_shapes=reader.shapes, **reader.state)
        reader.close()

    def save_torch(self) -> dict[str, float]:
        """Write this rank's fragments as most programs would, but synced."""
        began = time.perf_counter()
        with (self.folder / f"rank{self.world.rank}.pt").open("wb") as file:
            torch.save(self.engine.fragments(), file)
            file.flush()
            os.fsync(file.fileno())
        dist.barrier()
        seconds = time.perf_counter() - began
        return {"held": seconds, "safe": seconds}

    def load_torch(self) -> None:
        """Read them back into the engine."""
        path = self.folder / f"rank{self.world.rank}.pt"
        saved = torch.load(path, weights_only=True)
        parts = {key.rpartition("|")[0]: value for key, value in saved.items()}
        state = self.engine.state()
        self.engine.load_fragments(
            lambda kind, name, start, count: parts[f"{kind}|{name}"],
            optimizer_step=state["optimizer_step"],
        )

    def save_deepspeed(self, step: int) -> dict[str, float]:
        """Let DeepSpeed save."""
        shutil.rmtree(self.folder / "deepspeed", ignore_errors=True)
        dist.barrier()
        began = time.perf_counter()
        self.engine._zero.save_checkpoint(str(self.folder / "deepspeed"), tag=f"step{step}")
        dist.barrier()
        seconds = time.perf_counter() - began
        return {"held": seconds, "safe": seconds}

    def load_deepspeed(self) -> None:
        """Let DeepSpeed load."""
        path, _ = self.engine._zero.load_checkpoint(str(self.folder / "deepspeed"))
        assert path is not None


def rank_main(folder: Path, rounds: int, stage: int, embed_dim: int) -> None:
    """Measure in one rank; rank zero writes the slower rank's seconds."""
    world = world_from_environment()
    torch.set_num_threads(1)
    dist.initialize(world, torch.device("cpu"), timeout_seconds=600)
    bench = Bench(world, stage, embed_dim, folder / "saved")
    found: dict[str, dict[str, list[float]]] = {}
    ways: dict[str, tuple[Callable[[int], dict[str, float]], Callable[[], None]]] = {
        OURS_BESIDE: (
            lambda step: bench.save_ours(step, background=True),
            lambda: bench.load_ours(background=True),
        ),
        OURS_WAITED: (
            lambda step: bench.save_ours(step, background=False),
            lambda: bench.load_ours(background=False),
        ),
        TORCH: (lambda _: bench.save_torch(), bench.load_torch),
        DEEPSPEED: (bench.save_deepspeed, bench.load_deepspeed),
    }
    for number in range(rounds + 1):  # the first one warms up
        for name, (save, load) in ways.items():
            plain = _timed(bench.train)
            began = time.perf_counter()
            seconds = save(number + 1)
            seconds["lost"] = time.perf_counter() - began + _timed(bench.train) - plain
            if "safe" not in seconds:
                background = name == OURS_BESIDE
                seconds["safe"] = bench.until_safe(background=background)
                seconds["safe"] += seconds["held"] if background else 0.0
            seconds["load"] = _timed(load)
            slower = {
                key: max(rank[key] for rank in dist.gather_objects(seconds)) for key in seconds
            }
            if number:
                for key, value in slower.items():
                    found.setdefault(name, {}).setdefault(key, []).append(value)
    if world.rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
        size = sum(path.stat().st_size for path in (folder / "saved/ours_True").rglob("*.safe*"))
        (folder / "size").write_text(str(size))
    dist.shutdown()


def _timed(work: Callable[[], None]) -> float:
    dist.barrier()
    began = time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - began


def main() -> None:
    """Start the ranks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stage", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--embed-dim", type=int, default=96)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        rank_main(options.folder, options.rounds, options.stage, options.embed_dim)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={RANKS}",
            "--standalone", __file__, "--folder", folder, "--rounds", str(options.rounds),
            "--stage", str(options.stage), "--embed-dim", str(options.embed_dim),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads((Path(folder) / "found.json").read_text())
        size = int((Path(folder) / "size").read_text())
    print(
        f"{size / 2**20:.0f} MiB, stage {options.stage}, {RANKS} ranks, {options.rounds} rounds\n"
    )
    print("| way | held s | held by torch.save ÷ its own | lost s | safe s | load s |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, seconds in found.items():
        ratios = [a / b for a, b in zip(found[TORCH]["held"], seconds["held"], strict=True)]
        columns = (
            seconds["held"], ratios, seconds["lost"], seconds["safe"], seconds["load"],
        )  # fmt: skip
        print(f"| {name} | " + " | ".join(_spread(values) for values in columns) + " |")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed")}
    print(f"\n{os.cpu_count()} cores, Python {platform.python_version()}, {versions}")


def _spread(values: list[float]) -> str:
    return f"{median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


if __name__ == "__main__":
    main()
