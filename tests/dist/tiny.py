"""A network small enough for many engines per test, with every kind of parameter Swin has."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 7
GLOBAL_BATCH = 16
UNDECAYED = ("patch.bias", "norm.weight", "norm.bias", "fc1.bias", "fc2.bias", "head.bias")
UNDECAYED_TABLES = ("relative_position_bias_table",)


class TinyNet(nn.Module):
    """Odd sizes, so that shards cut through parameters; fc1 is above stage 3's threshold."""

    def __init__(self, seed: int = 0, channels: int = 23) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patch = nn.Conv2d(3, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)
        self.relative_position_bias_table = nn.Parameter(0.5 * torch.randn(16, channels))
        self.fc1 = nn.Linear(channels, 512)
        self.fc2 = nn.Linear(512, channels)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2) + self.relative_position_bias_table
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norm(tokens))))
        return 3.0 * self.head(tokens.mean(1))


def global_batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(GLOBAL_BATCH, 3, 16, 16, generator=generator)
    labels = torch.randint(CLASSES, (GLOBAL_BATCH,), generator=generator)
    soft = torch.softmax(torch.randn(GLOBAL_BATCH, CLASSES, generator=generator), 1)
    return images, 0.8 * F.one_hot(labels, CLASSES) + 0.2 * soft


def micro_batches(step: int, rank: int, size: int, accumulation: int) -> Iterator[tuple]:
    images, targets = global_batch(step)
    width = GLOBAL_BATCH // (size * accumulation)
    for micro in range(accumulation):
        first = (rank * accumulation + micro) * width
        yield images[first : first + width], targets[first : first + width]
