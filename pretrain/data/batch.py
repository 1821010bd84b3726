"""One batch of images, and the memory that workers fill with batches over and over.

Fresh memory costs a worker more time than the copy of a decoded image into it, because the kernel
clears every page of it. These pages are taken once, before the workers are forked, and shared with
them; a batch travels as the number of its slot. They belong to no file system, so that the size of
``/dev/shm`` does not matter.
"""

import mmap
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import DTypeLike

from pretrain.errors import DataError


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be used: its shard's file name, its key (or position), and why."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}, {self.key}: {self.reason}"


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    Attributes:
        images: uint8 [B, 3, H, W], RGB, channels last in memory.
        labels: int64 [B], positions in the manifest's class list.
        sample_ids: int64 [B], in manifest order within the split; -1 where not valid.
        seeds: int64 [B], non-negative; all of a sample's randomness (0 in evaluation). A replaced
            sample keeps the seed of the one it stands for.
        valid: bool [B]; False only in evaluation, for padding and for unreadable samples, whose
            images and labels are zeros.
        bad: samples that could not be used while making this batch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor
    seeds: torch.Tensor
    valid: torch.Tensor
    bad: tuple[BadSample, ...]

    def copied(self, *, pinned: bool) -> "Batch":
        """The same batch in memory of its own.

        Args:
            pinned: page-locked, from which copies to a GPU overlap with work.
        """
        fields = ("images", "labels", "sample_ids", "seeds", "valid")
        tensors = {name: getattr(self, name) for name in fields}
        copies = {name: t.pin_memory() if pinned else t.clone() for name, t in tensors.items()}
        return replace(self, **copies)


class Slots:
    """Shared memory for a number of batches of one size.

    Args:
        count: batches.
        batch_size: images of each.
        image_size: side of the images.

    Raises:
        DataError: the machine has not that much memory.
    """

    def __init__(self, count: int, batch_size: int, image_size: int):
        side = image_size
        self._images = _shared((count, batch_size, side, side, 3), np.uint8)
        self._numbers = _shared((count, 3, batch_size), np.int64)
        self.count = count

    def __getitem__(self, slot: int) -> Batch:
        """The batch in a slot; it changes when the slot is filled again."""
        labels, sample_ids, seeds = self._numbers[slot]
        images = self._images[slot].permute(0, 3, 1, 2)
        return Batch(images, labels, sample_ids, seeds, sample_ids >= 0, ())


def _shared(shape: tuple[int, ...], dtype: DTypeLike) -> torch.Tensor:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        memory = mmap.mmap(-1, size)
    except (OSError, ValueError) as error:
        raise DataError(
            f"loader: {size / 2**20:,.0f} MiB of shared memory cannot be had ({error}); lower "
            "data.workers_per_rank or data.prefetch_batches"
        ) from None
    return torch.from_numpy(np.frombuffer(memory, dtype=dtype).reshape(shape))
