"""The section about masked-image pre-training."""

import math
from typing import Annotated

from pydantic import Field

from pretrain.config.section import PositiveInt, Section


class MaskingConfig(Section):
    """What is hidden of each image in masked-image pre-training (SimMIM, arXiv 2111.09886)."""

    patch_size: PositiveInt = 32
    """Side of the squares that are each hidden or shown as a whole, pixels."""
    ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.6
    """Share of the squares that is hidden, rounded up to whole squares."""

    def squares_per_side(self, image_size: int) -> int:
        """Return how many squares lie along a side of an image."""
        return image_size // self.patch_size

    def hidden_squares(self, image_size: int) -> int:
        """Return how many squares of every image are hidden.

        Example:
            >>> MaskingConfig().hidden_squares(192)  # of 36
            22
        """
        return math.ceil(self.squares_per_side(image_size) ** 2 * self.ratio)
