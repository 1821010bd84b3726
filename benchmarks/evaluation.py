"""What counting by class, confusions and pictures add to an evaluation.

Compared with the same forward passes whose loss, top-1 and top-5 alone are added up.
"""

import io
import os
import platform
import tempfile
import time
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretrain import dist
from pretrain.config.schema import ModelConfig
from pretrain.data.thumbnail import thumbnail
from pretrain.evaluate.by_class import EXAMPLES_KEPT, PICTURE_SIDE, WORST_KEPT, worst_classes
from pretrain.evaluate.classification import TOP, losses, places
from pretrain.evaluate.tally import Tally
from pretrain.models.build import build
from pretrain.world import World

IMAGES = 50_000
BATCH = 32
REPEATS, FORWARD_REPEATS = 25, 3
CPU = torch.device("cpu")


def means_only(logits: Tensor, labels: Tensor, sums: Tensor) -> None:
    """Add up what four means need; the named alternative."""
    place = places(logits, labels)
    first, five, loss = place < 1, place < TOP, losses(logits, labels)
    sums += torch.stack((torch.tensor(len(labels)), first.sum(), five.sum(), loss.sum())).double()


def seconds_of(action) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def row(classes: int) -> str:
    """One line of the table: medians over batches, then the end of an evaluation once."""
    config = ModelConfig(variant="swin_t", image_size=224, window_size=7, num_classes=classes)
    model = build(config).eval()
    images = torch.randn(BATCH, 3, 224, 224)
    generator = torch.Generator().manual_seed(0)
    sums, tally = torch.zeros(4, dtype=torch.float64), Tally(classes, CPU)
    forward, plain, by_class = [], [], []
    with torch.no_grad():
        model(images)
    for number in range(REPEATS):
        labels = torch.randint(0, classes, (BATCH,), generator=generator)
        ids = torch.arange(BATCH) + number * BATCH
        valid = torch.ones(BATCH, dtype=torch.bool)
        if number < FORWARD_REPEATS:
            with torch.no_grad():
                forward.append(seconds_of(lambda: model(images)))
        logits = torch.randn(BATCH, classes, generator=generator)
        plain.append(seconds_of(lambda a=logits, b=labels: means_only(a, b, sums)))
        by_class.append(
            seconds_of(lambda a=logits, b=labels, c=valid, d=ids: tally.add(a, b, c, d))
        )
    end, pictures = seconds_at_the_end(classes, generator)
    batches = IMAGES / BATCH
    own = batches * (median(forward) + median(plain))
    more = batches * (median(by_class) - median(plain)) + end + pictures
    ratios = sorted(b / a for a, b in zip(plain, by_class, strict=True))
    return (
        f"| {classes:,} | {1e3 * median(forward):,.0f} | {1e3 * median(plain):.2f} | "
        f"{1e3 * median(by_class):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} | {end:.2f} | "
        f"{pictures:.2f} | {more / own:.2%} |"
    )


def seconds_at_the_end(classes: int, generator: torch.Generator) -> tuple[float, float]:
    """Of adding up 50,000 images that are all wrong, and of making and writing the pictures."""
    tally, size = Tally(classes, CPU), 500
    for first in range(0, IMAGES, size):
        labels = torch.randint(0, classes, (size,), generator=generator)
        logits = torch.zeros(size, classes)
        others = torch.randint(1, classes, (size,), generator=generator)
        logits[torch.arange(size), (labels + others) % classes] = 1.0
        tally.add(logits, labels, torch.ones(size, dtype=torch.bool), torch.arange(size) + first)
    names = [f"n{position:08d}" for position in range(classes)]
    found = []

    def add_up() -> None:
        found.append(tally.mistakes(worst_classes(tally.total(), names), EXAMPLES_KEPT))

    end = seconds_of(add_up)
    coarse = np.random.default_rng(0).integers(0, 256, (20, 25, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((500, 400), Image.Resampling.BICUBIC).save(file, "JPEG")
    with tempfile.NamedTemporaryFile() as target:

        def pictures() -> None:
            for _ in range(WORST_KEPT * EXAMPLES_KEPT):
                target.write(thumbnail(file.getvalue(), PICTURE_SIDE))

        return end, seconds_of(pictures)


def main() -> None:
    """Measure and print a table."""
    torch.set_num_threads(1)
    dist.initialize(World(), CPU, timeout_seconds=60)
    print(
        f"{time.strftime('%Y-%m-%d')}, one core of {os.cpu_count()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}; batches of {BATCH}, "
        f"Swin-T at 224, {IMAGES:,} images.\n"
    )
    print(
        "| classes | forward, ms a batch | means only, ms | by class, ms | ratio, least to most | "
        "adding up, s | 48 pictures, s | added to the evaluation |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for classes in (1000, 21_841):
        print(row(classes), flush=True)
    dist.shutdown()


if __name__ == "__main__":
    main()
