"""What the crash campaign saves: real ZeRO shards of a small Swin, and the twin's path through it.

The shards are made once per stage by two ranks that really train; a forked rank then only reads its
own, so that a kill point costs a tenth of a second. Deterministic on a CPU.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from pretrain import dist
from pretrain.checkpoint.layout import directory_name, file_name
from pretrain.checkpoint.resume import CheckpointReader
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.schema import EngineConfig, ModelConfig, OptimConfig
from pretrain.engine.engine import Engine
from pretrain.models.build import build
from pretrain.world import World

Stage = Literal[1, 2, 3]
RANKS, BATCH, CLASSES = 2, 4, 3
OLD, NEW, LAST = 1, 2, 3
"""Steps: of the checkpoint that is there, of the one whose save is hit, and of the end."""
MODEL = ModelConfig(
    variant="swin_t",
    image_size=32,
    window_size=4,
    num_classes=CLASSES,
    embed_dim=4,
    depths=(1, 1, 1, 1),
    heads=(1, 1, 2, 2),
)


def join(rank: int, ranks: int) -> World:
    """Join the other rank over gloo; the environment says where."""
    world = World(rank, ranks, rank, ranks)
    torch.set_num_threads(1)
    dist.initialize(world, torch.device("cpu"), timeout_seconds=120)
    return world


def make_engine(world: World, stage: Stage) -> Engine:
    """Return the engine of this rank, fp32 and deterministic."""
    torch.manual_seed(0)
    model = build(MODEL)
    return Engine(
        model,
        engine=EngineConfig(zero_stage=stage, precision="fp32", collective_timeout_seconds=120),
        optim=OptimConfig(lr=1e-3, clip_grad_norm=1.0),
        micro_batch=BATCH // world.size,
        accumulation=1,
        device=torch.device("cpu"),
        world=world,
        undecayed=model.no_weight_decay_names(),
    )


def train_to(engine: Engine, world: World, first: int, last: int) -> None:
    """Take the steps from ``first`` to ``last``; the data follow from the step."""
    for step in range(first, last):
        engine.train_step(_batches(world, step), lr=1e-3)


def _batches(world: World, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator)
    targets = torch.eye(CLASSES)[torch.randint(CLASSES, (BATCH,), generator=generator)]
    share = BATCH // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    yield images[mine], targets[mine]


def save_engine(store: CheckpointStore, engine: Engine, step: int, *, wait: bool = True) -> None:
    """Save the state of a training engine."""
    store.save(
        step,
        engine.live_fragments(),
        shapes=engine.parameter_shapes(),
        state=engine.state(),
        samples_consumed=step * BATCH,
        config_sha256="c" * 64,
        classes=[],
        wait=wait,
    )


def make_states(rank: int, ranks: int, directory: Path, stage: Stage) -> None:
    """Train from the start to the end and save after every step: the twin's path. Every rank."""
    world = join(rank, ranks)
    engine = make_engine(world, stage)
    store = CheckpointStore(directory, world=world, keep_last=LAST)
    for step in range(OLD, LAST + 1):
        train_to(engine, world, step - 1, step)
        save_engine(store, engine, step)


def make_noise(rank: int, ranks: int, directory: Path) -> None:
    """Save states that no engine made, for a sweep that must begin at once. Every rank."""
    world = join(rank, ranks)
    store = CheckpointStore(directory, world=world, keep_last=LAST)
    elements = 6000
    share = elements // ranks
    for step in range(OLD, LAST + 1):
        generator = torch.Generator().manual_seed(step * ranks + rank)
        fragments = {
            f"{kind}|{name}|{rank * share}": torch.randn(share, generator=generator)
            for kind in ("master", "exp_avg", "exp_avg_sq")
            for name in ("a.weight", "b.weight")
        }
        store.save(
            step,
            fragments,
            shapes={"a.weight": (elements,), "b.weight": (elements,)},
            state={"optimizer_step": step},
            samples_consumed=step * BATCH,
            config_sha256="c" * 64,
            classes=[],
        )


def resume_engine(rank: int, ranks: int, checkpoint: Path, stage: Stage, out: Path) -> None:
    """Go on from a checkpoint to the end and save that. Every rank."""
    world = join(rank, ranks)
    engine = make_engine(world, stage)
    reader = CheckpointReader(checkpoint)
    engine.load_fragments(reader.read, saved_shapes=reader.shapes, **reader.state)
    train_to(engine, world, reader.step, LAST)
    save_engine(CheckpointStore(out, world=world, keep_last=1), engine, LAST)


class Prepared:
    """The states of one stage as they lie on the disk: saving one needs no engine.

    Args:
        directory: that `make_states` filled.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._readers = {
            step: CheckpointReader(directory / directory_name(step))
            for step in range(OLD, LAST + 1)
        }
        self._fragments = {
            (step, rank): load_file(directory / directory_name(step) / file_name(rank))
            for step in self._readers
            for rank in range(RANKS)
        }

    def save(self, store: CheckpointStore, rank: int, step: int, *, wait: bool) -> None:
        """Save a step's state as its engine would. Every rank."""
        manifest = self._readers[step].manifest
        store.save(
            step,
            self._fragments[step, rank],
            shapes=manifest.shapes,
            state=manifest.state,
            samples_consumed=manifest.samples_consumed,
            config_sha256=manifest.config_sha256,
            classes=manifest.classes,
            wait=wait,
        )

    def fragment(self, step: int, rank: int, key: str) -> Tensor:
        """Return a part of a rank's state."""
        return self._fragments[step, rank][key]

    def equals(self, reader: CheckpointReader) -> bool:
        """Whether a checkpoint is its step's state, to the bit."""
        own = self._readers[reader.step]
        return (
            reader.shapes == own.shapes
            and reader.state == own.state
            and all(
                torch.equal(reader.full(kind, name), own.full(kind, name))
                for kind in ("master", "exp_avg", "exp_avg_sq")
                for name in own.shapes
            )
        )
