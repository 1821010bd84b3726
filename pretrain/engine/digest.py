"""One number for many tensors: different as soon as a single bit is."""

from collections.abc import Iterable

import torch
from torch import Tensor

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD = 0x9E3779B97F4A7C15 - 2**64
"""Odd, so that multiplying by it loses nothing (Fibonacci hashing: Knuth, TAOCP 3, 6.4)."""
_CHUNK_ELEMENTS = 2**24


@torch.no_grad()
def digest(tensors: Iterable[Tensor]) -> int:
    """Return a 64-bit digest of the tensors' bits, of their order and their places.

    Each element counts its bits times an odd number of its place, modulo 2^64, so that a change
    of one element always shows; no more is claimed. One wait for the device.
    """
    sums = []
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(-1).view(_WORDS[tensor.element_size()])
        for start in range(0, bits.numel(), _CHUNK_ELEMENTS):
            part = bits[start : start + _CHUNK_ELEMENTS].long()
            places = torch.arange(start, start + part.numel(), device=part.device)
            sums.append((part * (2 * places * _ODD + 1)).sum())
    if not sums:
        return 0
    device = sums[0].device
    total = torch.stack([part.to(device) for part in sums])
    return int((total * (2 * torch.arange(len(sums), device=device) * _ODD + 1)).sum().item())
