"""Small models and sets to evaluate, and the plain arithmetic they are checked against."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_tools.build import main as build_shards
from pretrain.config.schema import DataConfig, EvalConfig, ModelConfig
from pretrain.convert.export import read_weights, write_export
from pretrain.data.loader import eval_batches
from pretrain.data.manifest import read_manifest
from pretrain.models.build import build
from pretrain.world import World

SET_CLASSES = ("n00000001", "n00000003", "n00000005")
HEAD_CLASSES = ("n00000009", "n00000005", "n00000002", "n00000001", "n00000004", "n00000003",
                "n00000007", "n00000008")  # fmt: skip
"""Of the model: the set's classes in another order, among others."""
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
VALIDATION_IMAGES = 29


@dataclass(frozen=True)
class Case:
    """A model's export, a set packed as ImageNet's validation images are named."""

    export: Path
    shards: Path


def make_case(root: Path, head_classes: tuple[str, ...] = HEAD_CLASSES) -> Case:
    """Write both below ``root``."""
    rng = np.random.default_rng(0)
    numbers = iter(rng.permutation(VALIDATION_IMAGES) + 1)
    for split, count in (("train", 6), ("val", VALIDATION_IMAGES)):
        for index in range(count):
            wnid = SET_CLASSES[index % len(SET_CLASSES)]
            folder = root / "images" / split / wnid
            folder.mkdir(parents=True, exist_ok=True)
            number = f"ILSVRC2012_val_{next(numbers):08d}" if split == "val" else str(index)
            coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            width, height = (int(side) for side in rng.integers(40, 70, 2))
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            image.save(folder / f"{number}.JPEG", quality=90)
    names = "".join(f"{wnid}\tname of {wnid}\n" for wnid in SET_CLASSES[:2])
    (root / "images" / "classes.txt").write_text(names)
    shards = root / "shards"
    source = ["imagefolder", str(root / "images"), str(shards)]
    assert build_shards([*source, "--name", "tiny", "--shard-mib", "0.02", "--workers", "1"]) == 0
    return Case(make_export(root / "export", head_classes), shards)


def make_export(directory: Path, classes: tuple[str, ...]) -> Path:
    """A Swin with random weights large enough that its answers vary."""
    config = ModelConfig(
        variant="swin_t", embed_dim=16, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), image_size=32,
        window_size=4, num_classes=len(classes),
    )  # fmt: skip
    torch.manual_seed(3)
    model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    write_export(
        directory,
        model.state_dict(),
        model=config,
        classes=classes,
        class_names=[f"model's {wnid}" for wnid in classes],
        preprocessing={"image_size": 32, "resize": 36, "mean": MEAN, "std": STD},
        provenance={"run": "tiny", "step": 7},
    )
    return directory


def rows_by_hand(case: Case) -> list[tuple[int, str, list[float]]]:
    """Sample id, WordNet id and the whole head's logits of every validation image."""
    weights = read_weights(case.export)
    assert weights.model is not None
    model = build(weights.model).eval()
    model.load_state_dict(weights.tensors, strict=False)
    manifest = read_manifest(case.shards)
    data = DataConfig(path=str(case.shards), workers_per_rank=0)
    settings = EvalConfig(resize=36, batch_size_per_rank=1)
    found = []
    with eval_batches(
        manifest, "validation", data, settings, image_size=32, world=World()
    ) as batches:
        for batch in batches:
            image = batch.images.double() / 255
            mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
            with torch.no_grad():
                logits = model(((image - mean) / std).float())[0].tolist()
            wnid = manifest.classes[int(batch.labels[0])]
            found.append((int(batch.sample_ids[0]), wnid, logits))
    return found


def ranking(logits: list[float], head: tuple[str, ...], among: tuple[str, ...]) -> list[str]:
    """Classes of a set by falling logit."""
    return sorted(among, key=lambda wnid: -logits[head.index(wnid)])
