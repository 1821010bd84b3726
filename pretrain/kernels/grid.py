"""How many programs a kernel is divided into."""

import torch

_ON_CPU = 6
"""Of Triton's interpreter: few, so that each goes through several parts of the work."""


def programs(device: torch.device, per_processor: int) -> int:
    """Programs that keep a device busy: so many for each of its multiprocessors."""
    if device.type != "cuda":
        return _ON_CPU
    return torch.cuda.get_device_properties(device).multi_processor_count * per_processor
