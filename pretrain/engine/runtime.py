"""What DeepSpeed sets up once per process, done our way before it does it its own way."""

import contextlib
import os
import sys
import warnings
from datetime import timedelta
from types import ModuleType
from typing import cast

import torch
import torch.distributed as torch_dist


def import_deepspeed(device: torch.device) -> ModuleType:
    """Import DeepSpeed for a device, silent on standard output and without its compiler.

    The accelerator is taken from ``device`` rather than guessed. Its logger writes to whatever
    standard output was at import, so that is standard error here.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    # DeepSpeed takes LOCAL_RANK for the index of its device, and insists on it even alone.
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index or 0)
    os.environ.setdefault("LOCAL_RANK", "0")
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

        _import_muon_uncompiled()
    # Naming no compatible operation here stops a C++ build at start-up (tens of seconds, and an
    # error without a compiler) of a shared-memory operation that training never calls.
    deepspeed.ops.__dict__["__compatible_ops__"] = {}
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(deepspeed|torch)\b.*")
    return deepspeed


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon, as it will itself, without what would compile it.

    We never use that optimizer, but every ZeRO engine imports it, and its ``torch.compile``
    decorators load Inductor: two seconds of every rank's start.
    """
    from deepspeed.runtime import compiler

    original = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = original


def set_collective_group(timeout_seconds: int) -> torch_dist.ProcessGroup:
    """Give ZeRO's collectives a group with our timeout. Every rank, before the engine is built.

    DeepSpeed would clone the world without a timeout, and a hung rank would hold the others for
    half an hour whatever the config says.
    """
    from deepspeed.utils import groups

    ranks = list(range(torch_dist.get_world_size()))
    timeout = timedelta(seconds=timeout_seconds)
    group = cast(torch_dist.ProcessGroup, torch_dist.new_group(ranks=ranks, timeout=timeout))
    groups._WORLD_GROUP = group
    return group


def release_collective_group(group: torch_dist.ProcessGroup) -> None:
    """Undo `set_collective_group`. Every rank."""
    from deepspeed.utils import groups

    groups._WORLD_GROUP = None
    torch_dist.destroy_process_group(group)
