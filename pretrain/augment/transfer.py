"""Numbers drawn on the host, brought to the device without waiting for it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_ALIGNMENT_BYTES = 16
"""Of each tensor in what is sent; the widest element has 8."""


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy small tensors of the host to a device, all at once.

    Through page-locked memory: before a GPU's driver copies from any other, it waits for what the
    stream was given before. The copy is ordered on the current stream; torch keeps the page-locked
    memory until it was made.

    Args:
        tensors: on the host, of any types and shapes.
        device: where they are to be; the CPU has no memory to lock, and the rest is the same.

    Returns:
        Tensors with the same values on the device, parts of one piece of memory.
    """
    packed = pack(tensors, pinned=device.type == "cuda").to(device, non_blocking=True)
    return [
        packed[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in _placed(tensors)
    ]


def pack(tensors: Sequence[Tensor], *, pinned: bool) -> Tensor:
    """Copy tensors of the host into one, uint8 [bytes], each where `send` looks for it.

    Args:
        tensors: on the host.
        pinned: page-locked.
    """
    size = sum(_padded(tensor) for tensor in tensors)
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    for start, tensor in _placed(tensors):
        packed[start : start + tensor.nbytes].copy_(tensor.reshape(-1).view(torch.uint8))
    return packed


def _placed(tensors: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Each tensor with its first byte."""
    start = 0
    for tensor in tensors:
        yield start, tensor
        start += _padded(tensor)


def _padded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
