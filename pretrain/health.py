"""What every rank finds of its node before the first step, and which nodes are unfit by that."""

import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
from torch.cuda import nccl

from pretrain import dist
from pretrain.config.guard import HealthConfig
from pretrain.errors import NodeHealthError, StorageError
from pretrain.files import replace_json
from pretrain.guard import odd_ranks
from pretrain.job import Job
from pretrain.world import node_name

ROUNDS = 2
"""A rank is slow only if it is in every round."""
TRIES = 3
"""Of which the quickest counts."""
SLOW_FLOOR_SECONDS = 0.05
"""What is slower than others by less says nothing."""
_GIB = 2**30
_PERIOD = 97
_EQUAL_EVERYWHERE = ("torch", "deepspeed", "python")
_EQUAL_ON_CUDA = ("device", "memory_total_gib", "driver", "nccl")


@dataclass(frozen=True)
class Report:
    """What one rank found; sizes in GiB, times in seconds, one per round.

    Attributes:
        rank: whose.
        node: where it runs.
        device: name of the device that computes.
        memory_total_gib: of the device, whole.
        memory_free_gib: of it.
        driver: version of the GPU's driver; empty without one.
        nccl: its version; empty without it.
        torch: its version.
        deepspeed: its version.
        python: its version.
        disk_free_gib: at the run directory.
        tmp_free_gib: at the directory for temporary files.
        sum_is_right: whether a sum over all ranks came out as it must.
        product_is_right: whether matrix products did.
        product_seconds: some matrix products.
        copy_seconds: copying some memory to the device.
        sum_seconds: that sum; it takes all ranks as long as the slowest.
    """

    rank: int
    node: str
    device: str
    memory_total_gib: int
    memory_free_gib: float
    driver: str
    nccl: str
    torch: str
    deepspeed: str
    python: str
    disk_free_gib: float
    tmp_free_gib: float
    sum_is_right: bool
    product_is_right: bool
    product_seconds: tuple[float, ...]
    copy_seconds: tuple[float, ...]
    sum_seconds: float


def check_health(job: Job, device: torch.device) -> dict[str, Any] | None:
    """Look at every rank's node and name those that are unfit. Every rank, after joining.

    Rank zero writes all reports into the attempt's directory, and the ranks that are named.

    Returns:
        A summary; None where the config asks for no check.

    Raises:
        NodeHealthError: on every rank, with every rank named.
        StorageError: on every rank, the disk of the run directory is full.
    """
    settings = job.config.health
    if not settings.enabled:
        return None
    began = time.monotonic()
    found = dist.gather_objects(asdict(_look(job, device)))
    reports = [Report(**each) for each in found]
    faults = unfit(reports, settings, cuda=device.type == "cuda")
    if job.world.rank == 0:
        replace_json(job.run.ranks_path(job.attempt), {"ranks": found})
        if faults:
            name_bad_ranks(job, faults)
    if faults:
        named = "\n".join(f"rank {rank} on {node}: {why}" for rank, node, why in faults)
        raise NodeHealthError(named)
    free_gib = min(report.disk_free_gib for report in reports)
    needed_gib = settings.min_free_disk_gib
    if needed_gib is None:
        needed_gib = job.plan.checkpoint_bytes / 2**30
    if free_gib < needed_gib:
        raise StorageError(
            f"{job.run.path}: {free_gib:.3g} GiB free, expected {needed_gib:.3g} "
            "(health.min_free_disk_gib, else one checkpoint); make room"
        )
    return _summary(reports, time.monotonic() - began)


def name_bad_ranks(job: Job, named: Sequence[tuple[int, str, str]]) -> None:
    """Leave word for the supervisor about (rank, node, why). Rank zero."""
    entries = [{"rank": rank, "node": node, "why": why} for rank, node, why in named]
    replace_json(job.run.bad_ranks_path(job.attempt), {"bad_ranks": entries})


def unfit(
    reports: Sequence[Report], settings: HealthConfig, *, cuda: bool
) -> list[tuple[int, str, str]]:
    """Return (rank, node, why) of every rank whose node is unfit, in the order of ranks."""
    why: dict[int, list[str]] = {report.rank: [] for report in reports}
    for field in (*_EQUAL_EVERYWHERE, *(_EQUAL_ON_CUDA if cuda else ())):
        values = [getattr(report, field) for report in reports]
        for rank in odd_ranks(values):
            others = values[rank - 1] if rank else values[-1]
            common = statistics.mode(values)
            unlike = others if common == values[rank] else common
            why[rank].append(f"{field} is {values[rank]}, elsewhere {unlike}")
    for report in reports:
        why[report.rank] += _short_of(report, settings, cuda=cuda)
    for field, what in (("product_seconds", "matrix products"), ("copy_seconds", "copies")):
        times = [getattr(report, field) for report in reports]
        for rank, (taken, median) in slow_ranks(times, settings.slow_factor).items():
            why[rank].append(f"{what} took {taken:.3g} s, elsewhere {median:.3g} s")
    nodes = {report.rank: report.node for report in reports}
    return [(rank, nodes[rank], "; ".join(found)) for rank, found in why.items() if found]


def slow_ranks(times: Sequence[Sequence[float]], factor: float) -> dict[int, tuple[float, float]]:
    """Ranks that took more than ``factor`` times the median in every round.

    Args:
        times: seconds of each rank in each round.
        factor: at least 1.

    Returns:
        By rank, the last round's (seconds, median over the ranks).

    Example:
        >>> slow_ranks([(1.0, 1.1), (0.9, 1.0), (4.0, 4.2), (1.0, 9.0)], 3.0)
        {2: (4.2, 1.1)}
    """
    medians = [statistics.median_low(each) for each in zip(*times, strict=True)]
    return {
        rank: (own[-1], medians[-1])
        for rank, own in enumerate(times)
        if all(
            taken > factor * median and taken - median > SLOW_FLOOR_SECONDS
            for taken, median in zip(own, medians, strict=True)
        )
    }


def _short_of(report: Report, settings: HealthConfig, *, cuda: bool) -> list[str]:
    """What a single report says against its own node."""
    found = []
    if not report.product_is_right:
        found.append("a matrix product is wrong")
    if not report.sum_is_right:
        found.append("a sum over all ranks is wrong")
    least = settings.min_free_memory_fraction * report.memory_total_gib
    if cuda and report.memory_free_gib < least:
        found.append(
            f"{report.memory_free_gib:.1f} of {report.memory_total_gib} GiB of device memory free, "
            f"expected {least:.1f}: somebody else uses it"
        )
    if report.tmp_free_gib < settings.min_free_tmp_gib:
        found.append(
            f"{report.tmp_free_gib:.2f} GiB free in {tempfile.gettempdir()}, expected "
            f"{settings.min_free_tmp_gib:g}"
        )
    return found


def _look(job: Job, device: torch.device) -> Report:
    cuda = device.type == "cuda"
    free, total = torch.cuda.mem_get_info(device) if cuda else _host_memory()
    sum_is_right, sum_seconds = _sum(device, job.world.rank, job.world.size)
    product_is_right, product_seconds = _products(device)
    nccl_version = nccl.version() if cuda else ()
    return Report(
        rank=job.world.rank,
        node=node_name(),
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        memory_total_gib=round(total / _GIB),
        memory_free_gib=round(free / _GIB, 2),
        driver=_driver() if cuda else "",
        nccl=".".join(map(str, nccl_version)),
        torch=torch.__version__,
        deepspeed=metadata.version("deepspeed"),
        python=platform.python_version(),
        disk_free_gib=round(shutil.disk_usage(job.run.path).free / _GIB, 2),
        tmp_free_gib=round(shutil.disk_usage(tempfile.gettempdir()).free / _GIB, 2),
        sum_is_right=sum_is_right,
        product_is_right=product_is_right,
        product_seconds=product_seconds,
        copy_seconds=_copies(device),
        sum_seconds=sum_seconds,
    )


def _sum(device: torch.device, rank: int, size: int) -> tuple[bool, float]:
    """Whether a sum over the training group is right to the bit, and how long it took."""
    elements = 2**24 if device.type == "cuda" else 2**18
    pattern = torch.arange(elements, device=device) % _PERIOD
    values = (pattern + rank).float()  # whole numbers below 2^24 for up to 5,000 ranks
    expected = (pattern * size + size * (size - 1) // 2).float()
    torch_dist.all_reduce(values.clone())  # connections are made by the first
    dist.barrier()
    began = time.perf_counter()
    torch_dist.all_reduce(values)
    _settle(device)
    seconds = time.perf_counter() - began
    return bool(torch.equal(values, expected)), round(seconds, 6)


def _products(device: torch.device) -> tuple[bool, tuple[float, ...]]:
    """Whether products of ones are right, and the time of each round."""
    cuda = device.type == "cuda"
    side, count = (8192, 40) if cuda else (384, 1)
    ones = torch.ones(side, side, device=device, dtype=torch.float16 if cuda else torch.float32)
    product = torch.empty_like(ones)

    def multiply() -> None:
        for _ in range(count):
            torch.matmul(ones, ones, out=product)

    seconds = _timed(multiply, device)
    return bool((product == side).all()), seconds


def _copies(device: torch.device) -> tuple[float, ...]:
    cuda = device.type == "cuda"
    source = torch.ones(2**28 if cuda else 2**23, dtype=torch.uint8, pin_memory=cuda)
    target = torch.empty_like(source, device=device)
    return _timed(lambda: target.copy_(source), device)


def _timed(work: Callable[[], object], device: torch.device) -> tuple[float, ...]:
    """Seconds of the quickest of some tries, for each round."""
    rounds = []
    work()  # warm
    _settle(device)
    for _ in range(ROUNDS):
        tries = []
        for _ in range(TRIES):
            began = time.perf_counter()
            work()
            _settle(device)
            tries.append(time.perf_counter() - began)
        rounds.append(round(min(tries), 6))
    return tuple(rounds)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _host_memory() -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def _driver() -> str:
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")


def _summary(reports: Sequence[Report], seconds: float) -> dict[str, Any]:
    slowest = max(reports, key=lambda report: report.product_seconds[-1])
    summary = {
        "nodes": len({report.node for report in reports}),
        "device": reports[0].device,
        "driver": reports[0].driver,
        "nccl": reports[0].nccl,
        "memory_free_gib": min(report.memory_free_gib for report in reports),
        "disk_free_gib": min(report.disk_free_gib for report in reports),
        "product_seconds": statistics.median(each.product_seconds[-1] for each in reports),
        "slowest_rank": slowest.rank,
        "slowest_product_seconds": slowest.product_seconds[-1],
        "sum_seconds": max(report.sum_seconds for report in reports),
        "check_seconds": round(seconds, 3),
    }
    return {name: value for name, value in summary.items() if value != ""}
