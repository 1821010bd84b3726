"""Flips bits in, and cuts off, files of a checkpoint, and looks who notices.

python benchmarks/corruption.py [--flips 10000] [--cuts 1000]

Two checkpoints of the same small state; damage goes into any file of the newer one, each byte as
likely as the next. It must be refused by name, and the older one chosen. For comparison the same
number of damages goes into the same tensors as ``torch.save`` writes them (read back with
``weights_only=True``) and into one plain safetensors file; noticed there means that reading raises.
"""

import argparse
import io
import os
import platform
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pretrain import dist
from pretrain.checkpoint.layout import directory_name
from pretrain.checkpoint.resume import newest_valid
from pretrain.checkpoint.store import CheckpointStore
from pretrain.world import World

SHAPES = {"a.weight": (64, 48), "a.bias": (64,), "head.weight": (10, 64)}
Damage = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, draws: random.Random) -> bytes:
    """Return content with one bit another."""
    bit = draws.randrange(len(content) * 8)
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def cut(content: bytes, draws: random.Random) -> bytes:
    """Return less of the content."""
    return content[: draws.randrange(len(content))]


def save(directory: Path, step: int) -> None:
    """Save a state of noise."""
    torch.manual_seed(step)
    fragments = {
        f"{kind}|{name}|0": torch.randn(torch.Size(shape).numel())
        for kind in ("master", "exp_avg", "exp_avg_sq")
        for name, shape in SHAPES.items()
    }
    CheckpointStore(directory, world=World(), keep_last=2).save(
        step, fragments, shapes=SHAPES, state={}, samples_consumed=0, config_sha256="", classes=[]
    )


def ours(directory: Path, damage: Damage, times: int) -> tuple[int, int]:
    """Return how often damage was noticed, and how often the older checkpoint was chosen."""
    draws = random.Random(0)
    newer = directory / directory_name(2)
    files = sorted(newer.iterdir())
    weights = [path.stat().st_size for path in files]
    noticed = fallen_back = 0
    for _ in range(times):
        (path,) = draws.choices(files, weights)
        whole = path.read_bytes()
        path.write_bytes(damage(whole, draws))
        reader, refusals = newest_valid(directory)
        noticed += len(refusals) == 1 and path.name in refusals[0]
        fallen_back += reader is not None and reader.step == 1
        path.write_bytes(whole)
    return noticed, fallen_back


def theirs(
    whole: bytes, read: Callable[[bytes], dict[str, Any]], damage: Damage, times: int
) -> int:
    """Return how often reading raised."""
    draws = random.Random(0)
    noticed = 0
    for _ in range(times):
        try:
            read(damage(whole, draws))
        except Exception:  # noqa: BLE001 - whatever it raises is a notice
            noticed += 1
    return noticed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--cuts", type=int, default=1_000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    dist.initialize(World(), torch.device("cpu"), timeout_seconds=60)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        save(directory, 1)
        save(directory, 2)
        reader, _ = newest_valid(directory)
        assert reader is not None
        tensors = {
            f"{kind}|{name}": reader.full(kind, name)
            for kind in ("master", "exp_avg", "exp_avg_sq")
            for name in SHAPES
        }
        reader.close()
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        readers = {
            "`torch.load(weights_only=True)`": (
                buffer.getvalue(),
                lambda content: torch.load(io.BytesIO(content), weights_only=True),
            ),
            "`safetensors.torch.load`": (
                safetensors.torch.save(tensors),
                safetensors.torch.load,
            ),
        }
        print("| damage | times | reader | noticed | older one chosen |")
        print("|---|--:|---|--:|--:|")
        for name, damage, times in (("a bit", flip, options.flips), ("cut", cut, options.cuts)):
            noticed, chosen = ours(directory, damage, times)
            print(f"| {name} | {times:,} | **this** | {noticed:,} | {chosen:,} |", flush=True)
            for reader_name, (whole, read) in readers.items():
                noticed = theirs(whole, read, damage, times)
                print(f"| {name} | {times:,} | {reader_name} | {noticed:,} | |", flush=True)
    dist.shutdown()
    print(
        f"{time.monotonic() - began:.0f} s on {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, torch {torch.__version__}, safetensors "
        f"{safetensors.__version__}"
    )


if __name__ == "__main__":
    main()
