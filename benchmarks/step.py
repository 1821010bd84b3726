"""The whole training step, ours against other libraries' networks in plain torch.

python benchmarks/step.py [--output benchmarks/step.md]

Augmentation, forward and backward pass, clipping and optimizer on one device: our engine, and
around the same network of ours, of timm, of torchvision and of transformers, where these are
installed, a step in plain torch (autocast, clip_grad_norm_, fused AdamW) on the same augmented
images. The subjects of a cell live side by side and take turns, and ratios are between turns of the
same round. Without options it measures Swin-L, B, S and T at 224 and 384 pixels where there is a
GPU, Swin-L at 224 compiled too, for as long as --minutes allows; elsewhere a small network in a few
minutes.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import get_args

import torch
from measurements import where
from step_matrix import LIBRARIES, MODELS, OUR_PATHS, Cell, cells, subjects
from step_table import goals, remarks, table
from step_turns import WARM_UP_STEPS, Measured, Turns

from pretrain.errors import ConfigError, run_command
from pretrain.models.cost import count_forward_macs, count_parameters
from pretrain.plan.devices import Precision

GPU_COMMAND = "python benchmarks/step.py --output benchmarks/step.md"
PACKAGES = ("deepspeed", "timm", "torchvision", "transformers", "triton")
RECOMPUTES = ("none", "selective_attention", "selective_mlp", "full", "full_offload")
ON_CPU = "This is a CPU, which says nothing of a GPU: figures on GPUs are open. There, measure with"
NOTES = """\
- Milliseconds are medians; the loss counts to the forward pass, clipping to the optimizer. On a GPU
  parts are timed by events in its queue; host is what is left of the wall time beside them, and
  "issued in" how long the host takes to queue a step. Elsewhere all is on the host's clock.
- Every subject sees the same augmented images, which our augmentation makes of noise in each step;
  the others' when they need them, ours ahead: on a GPU on a stream of its own, which is no part and
  slows the others instead (`engine.overlap_augmentation`).
- Our network is compiled block by block, the others' whole.
- FLOP are those of forward and backward products by our count of the network, for all; nothing
  that is computed again counts. "A product" is one of large square matrices in the same precision,
  measured in the same round. Peaks are the makers', see pretrain/plan/devices.py.
- Who waits keeps its weights and optimizer on the device; --apart gives each turn a fresh process
  and the whole device.
- Peak GiB is what torch allocated on a GPU, else the growth of the process's resident set."""


def parser() -> argparse.ArgumentParser:
    """The command line; what is not given depends on the device."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/step.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, metavar="PIXELS")
    parser.add_argument("--micro-batches", nargs="+", type=int, metavar="IMAGES")
    parser.add_argument("--precisions", nargs="+", choices=get_args(Precision))
    parser.add_argument("--compile", nargs="+", choices=("eager", "compiled"), dest="modes")
    parser.add_argument("--checkpointing", nargs="+", choices=RECOMPUTES, default=["none"])
    parser.add_argument(
        "--attention", nargs="+", choices=OUR_PATHS, help="ours, and its norms, loss"
    )
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=[*LIBRARIES])
    parser.add_argument("--classes", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="that count in each turn")
    parser.add_argument("--apart", action="store_true", help="every turn in a fresh process")
    parser.add_argument("--minutes", type=float, default=20.0, help="begin no cell after them")
    parser.add_argument("--limit-seconds", type=float, default=600.0, help="for any answer")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    return parser


def complete(given: argparse.Namespace) -> None:
    """Fill in what suits the device, and refuse what does not.

    Raises:
        ConfigError: a number that cannot be, no such device, or fp16 without a GPU.
    """
    given.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpu = given.device == "cuda"
    if gpu and not torch.cuda.is_available():
        raise ConfigError("--device: torch finds no GPU here; give cpu")
    given.models = given.models or (["swin_l", "swin_b", "swin_s", "swin_t"] if gpu else ["small"])
    given.sizes = given.sizes or ([224, 384] if gpu else [128])
    given.micro_batches = given.micro_batches or (None if gpu else [8])
    given.precisions = given.precisions or (["bf16"] if gpu else ["bf16", "fp32"])
    given.modes = given.modes or (None if gpu else ["eager"])
    given.attention = given.attention or (["auto", "plain"] if gpu else ["auto"])
    given.classes = given.classes or (21841 if gpu else 1000)
    given.steps = given.steps or (8 if gpu else 2)
    for size in given.sizes:
        if size <= 0 or size % 32:
            raise ConfigError(f"--sizes: expected multiples of 32 pixels, got {size}")
    for count in given.micro_batches or []:
        if count <= 0 or count % 2:
            raise ConfigError(f"--micro-batches: expected even numbers above 0, got {count}")
    if given.rounds < 1 or given.steps < 1:
        raise ConfigError("--rounds and --steps: expected 1 or more")
    if "fp16" in given.precisions and not gpu:
        raise ConfigError("--precisions: fp16 needs a GPU; give bf16 or fp32")


def measure(given: argparse.Namespace) -> dict[Cell, Measured | None]:
    """Measure every cell that the time allows; None for the others."""
    began = time.monotonic()
    everything = cells(
        given.models,
        given.sizes,
        given.micro_batches,
        given.precisions,
        given.checkpointing,
        given.classes,
    )
    for cell in everything:
        cell.config()  # refused before anything is started
    turns = Turns(
        device=given.device,
        rounds=given.rounds,
        steps=given.steps,
        apart=given.apart,
        limit_seconds=given.limit_seconds,
        tell=lambda line: print(f"  {line}", file=sys.stderr),
    )
    found: dict[Cell, Measured | None] = dict.fromkeys(everything)
    for cell in everything:
        if time.monotonic() - began > 60 * given.minutes:
            break
        print(cell.title, file=sys.stderr)
        modes = given.modes or (["eager", "compiled"] if cell.is_of_goals else ["eager"])
        found[cell] = turns.take(cell, subjects(given.libraries, modes, given.attention))
    return found


def report(
    found: Mapping[Cell, Measured | None], given: argparse.Namespace, command: str
) -> Iterator[str]:
    """The whole file."""
    gpu = given.device == "cuda"
    device_name = torch.cuda.get_device_name(0) if gpu else None
    yield "# The training step: ours against other libraries'"
    yield ""
    yield "Augmentation, forward, backward, clipping and optimizer on one device, by turns."
    yield ""
    yield f"```sh\n{command}\n```"
    yield ""
    if not gpu:
        yield f"{ON_CPU}\n`{GPU_COMMAND}`."
        yield ""
    yield (
        f"{given.rounds} rounds of {given.steps} steps, after {WARM_UP_STEPS}; medians [least, "
        "greatest]."
    )
    for cell, measured in found.items():
        yield f"\n## {cell.title}\n"
        if measured is None:
            yield f"Not reached in {given.minutes:g} minutes; give --minutes, or fewer cells."
            continue
        shape = cell.shape
        facts = {"parameters": count_parameters(shape), "forward_macs": count_forward_macs(shape)}
        yield (
            f"{facts['parameters']:,} parameters, {facts['forward_macs'] / 1e9:.2f} GMAC of an "
            "image's forward pass; so has every network below, unless a line here says otherwise."
        )
        product = median(measured.product_flop_per_second)
        yield f"A product reaches {product / 1e12:.3g} TFLOP/s.\n"
        if said := [f"- {remark}" for remark in remarks(measured.rows, facts)]:
            yield "\n".join(said) + "\n"
        yield from table(cell, measured, device_name)
    reached = {cell: measured for cell, measured in found.items() if measured is not None}
    yield ""
    yield from goals(reached, device_name)
    yield ""
    yield where(gpu, PACKAGES)
    yield ""
    yield NOTES


def main(arguments: list[str]) -> int:
    """Measure, print and write; 1 where a subject failed for no reason that is expected."""
    given = parser().parse_args(arguments)
    complete(given)
    found = measure(given)
    command = shlex.join(["python", "benchmarks/step.py", *arguments])
    text = "\n".join(report(found, given, command))
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    failed = [row for measured in found.values() if measured for row in measured.rows.values()]
    return int(any(row.failed for row in failed))


if __name__ == "__main__":
    run_command(main)
