"""What a run would take on many GPUs, on paper: links, checkpoints, loaders, hours.

python benchmarks/scale.py [--config swin_l_22k] [--gpus 8 64 512] [--stages 1] [key=value ...]

Nothing is measured here. Every number follows from the config, from the operations and bytes that
the plan counts, from nominal rates (the options; their defaults and whose figures they are stand
above the tables), and from the formulas in `scale_model`. No GPU and no torch are needed.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from scale_model import Links, Machine, StepSeconds, paper_bytes_per_parameter, step_seconds

from pretrain.config.load import config_names, load_run
from pretrain.config.schema import RunConfig
from pretrain.errors import ConfigError, run_command
from pretrain.plan.cost import ASSUMED_FLOP_PER_SECOND
from pretrain.plan.derive import Plan, make_plan, split_batch
from pretrain.plan.devices import TRAINING_FLOP_PER_FORWARD_MAC, peak_flop_per_second
from pretrain.plan.loading import MEASURED_ON, RANK_CORES, loading_of
from pretrain.plan.resources import Resources, resources_of
from pretrain.plan.traffic import payloads_of

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
HOURS_OF_GPUS = (8, 64, 512)
STAGES = (1, 2, 3)
EXPOSED_LIMIT = 0.1
"""Share of a step that waits for links from which on this list calls them a limit."""


@dataclass(frozen=True)
class Case:
    """A config on so many GPUs, in one ZeRO stage.

    Attributes:
        gpus: ranks.
        config: what would be trained, mixing groups made to fit.
        plan: of it.
        step: its seconds.
        sent_bytes: by each rank in a step.
    """

    gpus: int
    config: RunConfig
    plan: Plan
    step: StepSeconds
    sent_bytes: float


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_intermixed_args(list(arguments))
    options.peak = peak_flop_per_second(options.device, "bf16")
    if options.peak is None:
        raise ConfigError(
            f"--device: got {options.device!r}, whose bf16 peak is not known; expected a name of "
            "pretrain/plan/devices.py, such as 'NVIDIA H200'"
        )
    for gpus in options.gpus:
        if gpus < 1 or (gpus > options.gpus_per_node and gpus % options.gpus_per_node):
            raise ConfigError(
                f"--gpus: got {gpus}, expected whole nodes of {options.gpus_per_node}"
            )
    cases = {
        key: _case(options, machine(options), *key)
        for key in product(options.gpus, options.stages, options.reduce_dtypes)
    }
    first = next(iter(cases.values()))
    sections = (
        _assumptions(options, first),
        _steps(cases),
        _checkpoints(options, cases),
        _loaders(options, cases),
        _limits(cases),
        _hours(options),
        _recipes(options),
    )
    print("\n\n".join("\n".join(section) for section in sections))
    return 0


def machine(options: argparse.Namespace, flop_per_second: float | None = None) -> Machine:
    """Return the machine that the options describe, or the same at another sustained rate."""
    return Machine(
        flop_per_second=flop_per_second or options.share * options.peak,
        memory_bytes_per_second=options.memory_terabytes * 1e12,
        links=Links(
            gpus_per_node=options.gpus_per_node,
            inside_bytes_per_second=options.inside_gigabytes * 1e9,
            between_bytes_per_second=options.between_gigabits * 1e9 / 8,
            latency_seconds=options.latency_microseconds * 1e-6,
        ),
    )


def fitted(name: str, overrides: Sequence[str], gpus: int) -> RunConfig:
    """Load a config and, where its batch does not divide otherwise, take smaller mixing groups."""
    config = load_run(name, overrides, cluster="slurm")
    group = config.augment.mix_group
    while True:
        try:
            split_batch(config, gpus)
        except ConfigError:
            if group == 2:  # the least that mixes
                raise
            group //= 2
            config = load_run(name, [*overrides, f"augment.mix_group={group}"], cluster="slurm")
        else:
            return config


def _case(
    options: argparse.Namespace, gpu: Machine, gpus: int, stage: int, reduce_dtype: str
) -> Case:
    engine = (f"engine.zero_stage={stage}", f"engine.reduce_dtype={reduce_dtype}")
    config = fitted(options.config, [*options.overrides, *engine], gpus)
    nodes = max(1, gpus // options.gpus_per_node)
    plan = make_plan(config, None, Resources("cuda", nodes, gpus // nodes), free_disk_bytes=0)
    payloads = payloads_of(config.engine, plan.parameters, plan.accumulation)
    step = step_seconds(
        gpu,
        gpus,
        images_per_gpu=plan.micro_batch * plan.accumulation,
        flop_per_image=flop_per_image(plan),
        parameters=plan.parameters,
        accumulation=plan.accumulation,
        payloads=payloads,
    )
    return Case(gpus, config, plan, step, sum(p.sent_bytes(gpus) for p in payloads))


def flop_per_image(plan: Plan) -> float:
    """Operations of a training step for one image."""
    return TRAINING_FLOP_PER_FORWARD_MAC * plan.forward_macs_per_image


def _assumptions(options: argparse.Namespace, case: Case) -> list[str]:
    plan, rate = case.plan, options.share * options.peak
    count = plan.parameters
    return [
        f"{case.config.name}: {count:,} parameters (pretrain.models.cost), gradients of "
        f"{4 * count / 1e6:,.0f} MB reduced in fp32, {2 * count / 1e6:,.0f} MB in bf16; "
        f"{flop_per_image(plan) / 1e9:,.1f} GFLOP an image, forward and backward; "
        f"global batch {plan.global_batch:,}.",
        "",
        f"- GPU: {options.device} ({options.peak / 1e12:,.1f} TFLOP/s dense bf16, the maker's), "
        f"sustaining {100 * options.share:g} % = {rate / 1e12:,.1f} TFLOP/s: a goal, not a "
        f"measurement. Memory {options.memory_terabytes:g} TB/s (the maker's of an H200).",
        f"- Inside a node of {options.gpus_per_node}: {options.inside_gigabytes:g} GB/s per GPU "
        "and direction (NVIDIA's 900 GB/s of NVLink 4 are both directions). Between nodes: one "
        f"adapter of {options.between_gigabits:g} Gbit/s for each GPU (NVIDIA's DGX H100 and "
        f"H200: ConnectX-7). {options.latency_microseconds:g} us a message: assumed.",
        f"- File system {options.file_system_gigabytes:g} GB/s, host bus "
        f"{options.bus_gigabytes:g} GB/s per GPU (PCIe 5.0 x16, nominal), "
        f"{options.image_kilobytes:g} kB an image (benchmarks/loader.md): the first is assumed.",
        "- Products run at one rate whatever their size, and nothing waits for the host: small "
        "micro-batches will do worse than this says.",
    ]


def _steps(cases: dict[Any, Case]) -> list[str]:
    lines = [
        "## A step",
        "",
        "| GPUs | mixing group | images per GPU | ZeRO, reduced in | sent by each, GB "
        "| the paper's, GB | computing, ms | weights, ms | sending, ms | not hidden, ms "
        "| efficiency | if gradients overlapped |",
        "|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for (gpus, stage, dtype), case in cases.items():
        plan, step = case.plan, case.step
        paper = paper_bytes_per_parameter(stage) * plan.parameters * (gpus - 1) / gpus
        overlapped = step.computing / (step.computing + step.weights + step.exposed_if_overlapped)
        milliseconds = (step.computing, step.weights, step.sending, step.exposed)
        cells = [
            f"{gpus:,}",
            str(case.config.augment.mix_group),
            f"{plan.micro_batch} x {plan.accumulation}",
            f"{stage}, {dtype}",
            f"{case.sent_bytes / 1e9:.2f}",
            f"{paper / 1e9:.2f}",
            *(f"{1000 * seconds:.2f}" for seconds in milliseconds),
            f"{100 * step.efficiency:.0f} %",
            f"{100 * overlapped:.0f} %",
        ]
        lines.append(_row(cells))
    return lines


def _checkpoints(options: argparse.Namespace, cases: dict[Any, Case]) -> list[str]:
    every = next(iter(cases.values())).config.checkpoint.every_steps
    lines = [
        f"## Checkpoints, every {every} steps",
        "",
        "| GPUs | written, GB | by each rank, MB | held for the copy, ms | written in, s "
        "| steps between, s | waited for, share | GB/s to keep up |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case in _of_first_kind(cases):
        size, between = case.plan.checkpoint_bytes, every * case.step.total
        written = size / (options.file_system_gigabytes * 1e9)
        cells = [
            f"{case.gpus:,}",
            f"{size / 1e9:.2f}",
            f"{size / case.gpus / 1e6:,.1f}",
            f"{1000 * size / case.gpus / (options.bus_gigabytes * 1e9):.2f}",
            f"{written:.2f}",
            f"{between:,.1f}",
            f"{100 * written / (between + written):.2g} %",
            f"{size / 1e9 / between:.3g}",
        ]
        lines.append(_row(cells))
    return lines


def _loaders(options: argparse.Namespace, cases: dict[Any, Case]) -> list[str]:
    lines = [
        f"## Loaders ({MEASURED_ON})",
        "",
        "| GPUs | images/s | read, GB/s | per node, GB/s | cores per GPU |",
        "|--:|--:|--:|--:|--:|",
    ]
    for case in _of_first_kind(cases):
        rate = case.plan.global_batch / case.step.total
        read = rate * options.image_kilobytes * 1e3
        loading = loading_of(case.config, rate / case.gpus, options.gpus_per_node)
        cells = [
            f"{case.gpus:,}",
            f"{rate:,.0f}",
            f"{read / 1e9:.2f}",
            f"{read / case.plan.nodes / 1e9:.2f}",
            f"{loading.cores_needed:.1f} + {RANK_CORES}",
        ]
        lines.append(_row(cells))
    return lines


def _limits(cases: dict[Any, Case]) -> list[str]:
    """Return from how many GPUs on each thing is a limit, in the order in which they come."""
    shipped = load_run(next(iter(cases.values())).config.name).augment.mix_group

    def between_saves(case: Case) -> float:
        return case.config.checkpoint.every_steps * case.step.total

    limits: dict[str, Callable[[Case], bool]] = {
        "one micro-batch is the whole step: nothing is left to accumulate": lambda case: (
            case.plan.accumulation == 1
        ),
        f"links are more than {100 * EXPOSED_LIMIT:.0f} % of a step": lambda case: (
            case.step.exposed > EXPOSED_LIMIT * case.step.total
        ),
        f"mixing groups of {shipped} no longer fit into a rank's images: another augment.mix_group "
        "is another recipe": lambda case: case.config.augment.mix_group < shipped,
        "links are more than half of a step": lambda case: case.step.exposed > case.step.total / 2,
        "a checkpoint is due every 10 s or sooner": lambda case: between_saves(case) <= 10,
        "a rank has 8 images or fewer": lambda case: case.plan.micro_batch <= 8,
    }
    lines = ["## What breaks, in order", ""]
    found = []
    for text, is_reached in limits.items():
        reached = [case.gpus for case in _of_first_kind(cases) if is_reached(case)]
        found.append((min(reached), text) if reached else (10**9, text))
    for gpus, text in sorted(found, key=lambda pair: pair[0]):
        lines.append(f"- {'never here' if gpus == 10**9 else f'{gpus:,} GPUs'}: {text}.")
    return lines


def _hours(options: argparse.Namespace) -> list[str]:
    lines = [
        "## Hours of the whole run",
        "",
        "| sustained by each GPU | GPUs | products alone, h | with weights, links, h | GPU-hours |",
        "|---|--:|--:|--:|--:|",
    ]
    rates = {
        "the plan's assumption": ASSUMED_FLOP_PER_SECOND["cuda"],
        f"goal, {100 * options.share:g} % of {options.device}": options.share * options.peak,
    }
    stage, dtype = options.stages[0], options.reduce_dtypes[0]
    for (name, rate), gpus in product(rates.items(), HOURS_OF_GPUS):
        case = _case(options, machine(options, rate), gpus, stage, dtype)
        steps = case.plan.total_steps
        alone = steps * case.step.computing / 3600
        whole = steps * case.step.total / 3600
        shown = f"{name}: {rate / 1e12:,.0f} TFLOP/s"
        lines.append(
            _row([shown, f"{gpus:,}", f"{alone:.2f}", f"{whole:.2f}", f"{whole * gpus:,.0f}"])
        )
    return lines


def _recipes(options: argparse.Namespace) -> list[str]:
    """Return the cores per GPU that every shipped recipe's loader needs at the sustained rate."""
    cores = options.cores_per_node / options.gpus_per_node
    lines = [
        f"## Cores per GPU at {100 * options.share:g} % of {options.device}, by recipe",
        "",
        f"A node of {options.cores_per_node} cores and {options.gpus_per_node} GPUs has "
        f"{cores:g} for each.",
        "",
        "| recipe | GMAC | images/s per GPU | cores per GPU | enough | short from a share of |",
        "|---|--:|--:|--:|---|--:|",
    ]
    for name in config_names():
        if not name.startswith("swin"):
            continue
        config = load_run(name, cluster="slurm")
        plan = make_plan(config, None, resources_of(config.cluster, 0), free_disk_bytes=0)
        rate = options.share * options.peak / flop_per_image(plan)
        needed = loading_of(config, rate, options.gpus_per_node).cores_needed
        most = options.share * (cores - RANK_CORES) / needed
        cells = [
            f"`{name}`",
            f"{plan.forward_macs_per_image / 1e9:.1f}",
            f"{rate:,.0f}",
            f"{needed:.1f} + {RANK_CORES}",
            "yes" if needed + RANK_CORES <= cores else "no",
            f"{100 * most:.0f} %" if most < 1 else "none",
        ]
        lines.append(_row(cells))
    return lines


def _of_first_kind(cases: dict[Any, Case]) -> Iterator[Case]:
    """Yield one case for each number of GPUs: the first stage and reduction type asked for."""
    _, stage, dtype = next(iter(cases))
    return (case for (_, s, d), case in cases.items() if (s, d) == (stage, dtype))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/scale.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="swin_l_22k", metavar="NAME")
    parser.add_argument("--gpus", type=int, nargs="+", default=list(GPUS), metavar="N")
    parser.add_argument("--stages", type=int, nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument(
        "--reduce-dtypes", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"]
    )
    parser.add_argument("--device", default="NVIDIA H200", help="(default: NVIDIA H200)")
    for name, default, what in (
        ("--share", 0.4, "of its dense bf16 peak that it sustains"),
        ("--memory-terabytes", 4.8, "its memory carries in a second"),
        ("--inside-gigabytes", 450.0, "a second between GPUs of a node, per GPU and direction"),
        ("--between-gigabits", 400.0, "a second between nodes, per GPU and direction"),
        ("--latency-microseconds", 10.0, "of one message"),
        ("--file-system-gigabytes", 10.0, "a second that the file system writes"),
        ("--bus-gigabytes", 64.0, "a second from a GPU to its host"),
        ("--image-kilobytes", 106.0, "of an image on average"),
    ):
        parser.add_argument(name, type=float, default=default, help=f"{what} (default: {default})")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="(default: 8)")
    parser.add_argument("--cores-per-node", type=int, default=96, help="(default: 96)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the config")
    return parser


if __name__ == "__main__":
    run_command(main)
