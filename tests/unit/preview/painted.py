"""A small painted shard set, a config that mixes it in every way, and the golden picture of it.

Renew the golden files after a change that is meant, and look at the picture:
``python tests/unit/preview/painted.py``.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools.build import main as build
from data_tools.painting import KINDS, paint
from pretrain.preview.drawing import draw
from pretrain.preview.remake import sheet_of_request
from pretrain.preview.request import request_of_config
from pretrain.preview.sheet import Sheet

GOLDEN = Path(__file__).parent / "golden.png"
GOLDEN_VALUES = Path(__file__).parent / "golden.json"
IMAGES, COLUMNS = 12, 4
NAMELESS = "n90000231"
"""A class that is given no readable name."""

CONFIG = """\
data: {{path: {shards}, workers_per_rank: 1, build: python -m data_tools.build from here}}
model: {{variant: swin_t, embed_dim: 16, depths: [1, 1, 2, 1], heads: [1, 2, 4, 8],
         image_size: 32, window_size: 4, num_classes: 6}}
optim: {{lr: 1.0e-3}}
schedule: {{epochs: 2, warmup_epochs: 0.5}}
batch: {{global_size: 24, micro_size_max: 24}}
augment: {{crop_scale: [0.5, 1.0], mix_group: 8, mix_probability: 0.7, erase_probability: 0.3}}
seed: 19
eval: {{resize: 36}}
wandb: {{mode: disabled}}
engine: {{precision: fp32, threads_per_rank: 1}}
cluster: {{device: cpu}}
"""


def make_config(folder: Path) -> Path:
    """Paint six classes of twelve training and one validation images; return a config of them."""
    images = folder / "images"
    for number, kind in enumerate(KINDS[:6]):
        for split, count in (("train", 12), ("validation", 1)):
            place = images / split / kind.wnid
            place.mkdir(parents=True)
            for index in range(count):
                random = np.random.default_rng([number, index, len(split)])
                picture = Image.fromarray(paint(kind, random))
                picture.save(place / f"{index}.JPEG", quality=95)
    names = [f"{kind.wnid}\t{kind.name}" for kind in KINDS[:6] if kind.wnid != NAMELESS]
    (images / "classes.txt").write_text("\n".join(names) + "\n")
    assert build(["imagefolder", str(images), str(folder / "shards"), "--name", "painted"]) == 0
    path = folder / "painted.yaml"
    path.write_text(CONFIG.format(shards=folder / "shards"))
    return path


def sheet_of_config(config: Path, *overrides: str, images: int = IMAGES, **which: int) -> Sheet:
    """The picture of a micro-batch of the config, the first unless told otherwise."""
    request = request_of_config(str(config), overrides, **which)
    return sheet_of_request(request, images=images, crops=False)


def values_of(sheet: Sheet) -> dict[str, Any]:
    """Everything that a picture says in words and numbers, as JSON holds it."""
    groups = [
        {
            "heading": group.heading,
            "panels": [
                {
                    "labels": [asdict(label) for label in panel.labels],
                    "sample_id": panel.sample_id,
                    "partner_id": panel.partner_id,
                    "draws": list(panel.draws),
                    "partner_draws": list(panel.partner_draws),
                }
                for panel in group.panels
            ],
        }
        for group in sheet.groups
    ]
    return {"title": sheet.title, "notes": list(sheet.notes), "groups": groups}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        golden = sheet_of_config(make_config(Path(folder)))
    draw(golden, COLUMNS).save(GOLDEN, optimize=True)
    GOLDEN_VALUES.write_text(json.dumps(values_of(golden), indent=1) + "\n")
