"""File names of images, of which there are millions: what many share is kept once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Names:
    """Names that begin and end alike, such as those of a class.

    Attributes:
        head: what all of them begin with.
        cores: bytes [names], what lies between.
        end: what all of them end with.
    """

    head: bytes
    cores: NDArray[np.bytes_]
    end: bytes

    def full(self) -> list[bytes]:
        """The names, whole."""
        return [self.head + core + self.end for core in self.cores.tolist()]


def shared(names: Sequence[bytes]) -> Names:
    """Take from names what all of them begin and end with."""
    if not names:
        return Names(b"", np.array([], dtype=bytes), b"")
    head = _common_start(min(names), max(names))
    backwards = [name[len(head) :][::-1] for name in names]
    end = _common_start(min(backwards), max(backwards))[::-1]
    cores = np.array([name[len(head) : len(name) - len(end)] for name in names])
    return Names(head, cores, end)


def joined(
    classes: Sequence[Names],
) -> tuple[tuple[bytes, ...], NDArray[np.bytes_], tuple[bytes, ...]]:
    """The heads by class, the cores of all images, the ends by class."""
    cores = np.concatenate([names.cores for names in classes])
    return tuple(n.head for n in classes), cores, tuple(n.end for n in classes)


def _common_start(first: bytes, second: bytes) -> bytes:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return first[:length]
