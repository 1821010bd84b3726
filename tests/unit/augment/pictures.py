"""Made-up photographs for the augmentation tests: smooth, textured, flat and noisy in parts."""

import numpy as np
import torch


def make_pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Draw uint8 [count, 3, height, width]; the last ones have few values, or one."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    pictures = np.empty((count, 3, height, width), np.uint8)
    for index in range(count):
        colours = random.uniform(-110, 110, (4, 3, 1, 1))
        values = (
            random.uniform(60, 190, (3, 1, 1)) + colours[0] * (x - 0.5) + colours[1] * (y - 0.5)
        )
        frequency, phase = random.uniform(3, 40, 2), random.uniform(0, 6, 2)
        values = values + 0.4 * colours[2] * np.sin(frequency[0] * x + frequency[1] * y + phase[0])
        centre, radius = random.uniform(0, 1, 2), random.uniform(0.1, 0.4)
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        values = np.where(disc, 128 + colours[3], values)
        values = values + (x > 0.5) * random.normal(0, 12, (3, height, width))
        values = np.where(y > 0.8, 255.0 if index % 2 else 0.0, values)  # a saturated band
        pictures[index] = values.clip(0, 255)
    if count > 4:
        pictures[-1] = 77
        pictures[-2] = pictures[-2] // 128 * 100 + 3
    return torch.from_numpy(pictures)
