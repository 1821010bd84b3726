"""What a picture of a batch shows: values only, between `compose`, `drawing` and the listing."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""[height, width, 3], RGB."""


IMAGES = 32
"""Images shown, unless something else is asked for."""


@dataclass(frozen=True)
class Label:
    """A class in the target of an image.

    Attributes:
        id: WordNet id.
        name: for people; the id itself where none is known.
        weight_fraction: its entry in the target, with its share of the label smoothing.
    """

    id: str
    name: str
    weight_fraction: float


@dataclass(frozen=True)
class Panel:
    """One image as the model is given it.

    Attributes:
        pixels: the image, un-normalised; what is hidden from the model is grey.
        labels: classes of the target, heaviest first; none where labels are not looked at.
        sample_id: which sample of the training split it is.
        partner_id: which one is mixed into it; None where none is.
        draws: what was done to the image itself before mixing, in order, by name.
        partner_draws: what was done to its partner.
        crop: the random crop before all that; None where it is not to be shown.
    """

    pixels: Pixels
    labels: tuple[Label, ...]
    sample_id: int
    partner_id: int | None
    draws: tuple[str, ...]
    partner_draws: tuple[str, ...] = ()
    crop: Pixels | None = None


@dataclass(frozen=True)
class Group:
    """Images that share one draw of the mixing.

    Attributes:
        heading: how they are mixed, or what else they have in common.
        panels: those that are shown, in the order of the batch.
    """

    heading: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Sheet:
    """A picture.

    Attributes:
        title: what is shown, in one line.
        notes: sentences on how to read it.
        groups: at least one, none of them empty; all images are of one size.
    """

    title: str
    notes: tuple[str, ...]
    groups: tuple[Group, ...]

    @property
    def panels(self) -> Iterator[Panel]:
        """All of them, in the order of the batch."""
        return (panel for group in self.groups for panel in group.panels)
