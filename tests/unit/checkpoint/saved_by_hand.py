"""A checkpoint written without the store: two ranks' files that cut through the parameters."""

import hashlib
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from pretrain.checkpoint.layout import CheckpointManifest, SavedFile, directory_name

SHAPES = {"head.weight": (3, 5), "head.bias": (3,)}
CUTS = {"head.weight": (0, 4, 9, 15), "head.bias": (0, 2, 3)}


def value(kind: str, name: str, step: int) -> Tensor:
    """Known content: every element of everything differs."""
    kinds = ("master", "exp_avg", "exp_avg_sq")
    base = 1000.0 * step + 100.0 * kinds.index(kind) + 50.0 * (name == "head.bias")
    return base + torch.arange(15 if name == "head.weight" else 3, dtype=torch.float32)


def contents(step: int) -> dict[str, dict[str, Tensor]]:
    """Fragments by file: the pieces are dealt to the two ranks in turn."""
    files: dict[str, dict[str, Tensor]] = {
        "rank_00000.safetensors": {},
        "rank_00001.safetensors": {},
    }
    for kind in ("master", "exp_avg", "exp_avg_sq"):
        for name, cuts in CUTS.items():
            for turn, (start, end) in enumerate(pairwise(cuts)):
                fragment = value(kind, name, step)[start:end].clone()
                files[f"rank_{turn % 2:05d}.safetensors"][f"{kind}|{name}|{start}"] = fragment
    return files


def manifest_of(step: int, files: dict[str, bytes]) -> CheckpointManifest:
    saved = {
        name: SavedFile(
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            fragments={key: part.numel() for key, part in contents(step)[name].items()},
        )
        for name, content in files.items()
    }
    return CheckpointManifest(
        step=step,
        samples_consumed=step * 64,
        world_size=2,
        config_sha256="0" * 64,
        classes=("n00000001", "n00000002", "n00000003"),
        shapes=SHAPES,
        state={"optimizer_step": step, "skipped_steps": 0},
        files=saved,
    )


def write_checkpoint(root: Path, step: int) -> Path:
    directory = root / directory_name(step)
    directory.mkdir(parents=True)
    files = {name: save(parts) for name, parts in contents(step).items()}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    (directory / "manifest.json").write_text(manifest_of(step, files).to_text())
    return directory
