"""What the sample order costs at full size, against torch's DistributedSampler.

python benchmarks/order.py [--rounds 7]

ImageNet-22K: 14.2 million samples in 4,600 shards, global batch 4,096, resumed in the middle of an
epoch. Each round measures, each in a fresh process, how long it takes until the first micro-batch
of a rank is known, what every further one takes, and the memory that this added. The sampler makes
the whole epoch's permutation, as it always does, and the list is cut where the job resumes.
Medians with the least and the greatest; the ratio is between runs of the same round.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from statistics import median

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from pretrain.data.order import SampleOrder

SHARDS = [3086] * 4599 + [14_197_122 - 3086 * 4599]
BATCH, MICRO_BATCH, STEP, FURTHER = 4096, 64, 200_000, 50


def ours() -> dict[str, float]:
    """This project's order."""
    begin, before = time.perf_counter(), _peak_kib()
    order = SampleOrder(SHARDS, seed=0, lanes=64, window_shards=8)
    order.batch(STEP, BATCH, 0, MICRO_BATCH)
    first = time.perf_counter()
    for step in range(STEP + 1, STEP + 1 + FURTHER):
        order.batch(step, BATCH, 0, MICRO_BATCH)
    return _result(begin, first, before)


class _Numbers(Dataset):
    def __len__(self) -> int:
        return sum(SHARDS)

    def __getitem__(self, index: int) -> int:
        return index


def distributed_sampler() -> dict[str, float]:
    """The sampler of torch for one of 64 ranks."""
    numbers = _Numbers()
    begin, before = time.perf_counter(), _peak_kib()
    sampler = DistributedSampler(numbers, num_replicas=BATCH // MICRO_BATCH, rank=0, seed=0)
    sampler.set_epoch(STEP * BATCH // len(numbers))
    mine = list(sampler)
    start = STEP % (len(numbers) // BATCH) * MICRO_BATCH
    mine[start : start + MICRO_BATCH]
    first = time.perf_counter()
    for step in range(1, 1 + FURTHER):
        mine[start + step * MICRO_BATCH : start + (step + 1) * MICRO_BATCH]
    return _result(begin, first, before)


KINDS = {"swin-pretrain": ours, "DistributedSampler": distributed_sampler}


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _result(begin: float, first: float, before_kib: int) -> dict[str, float]:
    now = time.perf_counter()
    return {
        "first micro-batch, ms": 1000 * (first - begin),
        "each further one, ms": 1000 * (now - first) / FURTHER,
        "memory added, MiB": (_peak_kib() - before_kib) / 1024,
    }


def _run_apart(kind: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _spread(values: list[float]) -> str:
    return f"{median(values):,.2f} [{min(values):,.2f}, {max(values):,.2f}]"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(KINDS[options.one]()))
        return
    rounds = [{kind: _run_apart(kind) for kind in KINDS} for _ in range(options.rounds)]
    print("| | swin-pretrain | DistributedSampler | sampler ÷ ours |\n|---|--:|--:|--:|")
    for name in rounds[0]["swin-pretrain"]:
        mine, other = ([r[kind][name] for r in rounds] for kind in KINDS)
        ratio = f"{median(o / max(m, 0.01) for m, o in zip(mine, other, strict=True)):,.1f}"
        print(f"| {name} | {_spread(mine)} | {_spread(other)} | {ratio} |")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"\n{options.rounds} rounds; {versions}, numpy {np.__version__}")


if __name__ == "__main__":
    main()
