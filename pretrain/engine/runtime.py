"""What DeepSpeed sets up once per process, done our way before it does it its own way."""

import contextlib
import logging
import os
import sys
import warnings
from datetime import timedelta
from types import ModuleType
from typing import cast

import torch
import torch.distributed as torch_dist

from pretrain.engine import shards
from pretrain.engine.nvidia_apex import unusable_hidden


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
    with (
        contextlib.redirect_stdout(sys.stderr),
        warnings.catch_warnings(),
        unusable_hidden(),
    ):
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

        shards.import_muon_uncompiled()
    shards.forbid_extensions(deepspeed.ops)
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(deepspeed|torch)\b.*")
    return deepspeed


def _is_news(record: logging.LogRecord) -> bool:
    """Tell what a reader of the log must see from a warning of our own optimizer."""
    return "untested optimizer" not in record.getMessage()


def set_collective_group(timeout_seconds: int) -> torch_dist.ProcessGroup:
    """Give ZeRO's collectives a group with our timeout. Every rank, before the engine is built.

    DeepSpeed would clone the world without a timeout, and a hung rank would hold the others for
    half an hour whatever the config says.
    """
    ranks = list(range(torch_dist.get_world_size()))
    timeout = timedelta(seconds=timeout_seconds)
    group = cast(torch_dist.ProcessGroup, torch_dist.new_group(ranks=ranks, timeout=timeout))
    shards.set_world_group(group)
    return group


def release_collective_group(group: torch_dist.ProcessGroup) -> None:
    """Undo `set_collective_group`. Every rank."""
    shards.set_world_group(None)
    torch_dist.destroy_process_group(group)
