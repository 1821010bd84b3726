"""How benchmarks print what they measured, and what they measured it with."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch


def spread(values: Sequence[float], digits: int = 2) -> str:
    """A median, the least and the greatest."""
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def where(gpu: bool, packages: Sequence[str] = ("deepspeed",)) -> str:
    """The day, the machine and the versions; packages that are not installed are left out."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "?")
    place = torch.cuda.get_device_name(0) if gpu else f"{os.cpu_count()} cores of {model}"
    versions = [f"Python {platform.python_version()}, torch {torch.__version__}"]
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"Measured {time.strftime('%Y-%m-%d')} on {place}; {', '.join(versions)}."
