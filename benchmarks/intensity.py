"""Where a step is bound by memory: operations and bytes of each part of a Swin, on paper.

python benchmarks/intensity.py [--config swin_l_22k] [--micro-batch 128] [key=value ...]

One block of each kind is run forward and backward as training does, under bf16 autocast, on tensors
without storage. Every operator is counted with the operations of its products and the bytes of its
inputs and outputs, once each, and is given the time that the stated rates allow it: its operations
at the peak, or its bytes at the memory's rate, whichever is longer. Nothing is timed and no device
is needed. Caches are left out: what they keep makes small maps faster, and every kernel that does
not reach these rates makes a step slower.
"""

import argparse
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from intensity_count import KINDS, OTHER, Operator, count, without_storage
from scale_model import weight_bytes
from torch import Tensor, nn

from pretrain.config.load import load_run
from pretrain.engine.classification import soft_target_cross_entropy
from pretrain.errors import ConfigError, run_command
from pretrain.kernels.cross_entropy import fused_soft_target_cross_entropy
from pretrain.models.build import use_kernels
from pretrain.models.cost import count_parameters
from pretrain.models.swin import Block, Stage, Swin
from pretrain.models.variants import IMAGE_CHANNELS, Shape, shape_of, stage_maps
from pretrain.plan.devices import peak_flop_per_second


@dataclass(frozen=True)
class Device:
    """Rates of a device.

    Attributes:
        flop_per_second: of bf16 products, at most.
        bytes_per_second: of its memory, at most.
    """

    flop_per_second: float
    bytes_per_second: float

    def seconds(self, operator: Operator) -> float:
        """What an operator takes at these rates."""
        return max(
            operator.flop / self.flop_per_second, operator.size_bytes / self.bytes_per_second
        )


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_intermixed_args(list(arguments))
    peak = peak_flop_per_second(options.device, "bf16")
    if peak is None or options.micro_batch < 1:
        raise ConfigError(
            f"--device, --micro-batch: got {options.device!r}, {options.micro_batch}; expected a "
            "name of pretrain/plan/devices.py and at least 1"
        )
    config = load_run(options.config, options.overrides)
    if config.masking is not None:
        raise ConfigError(f"--config {config.name}: expected a classifier, got masked training")
    device = Device(peak, options.memory_terabytes * 1e12)
    shape = shape_of(config.model)
    parts = counted_parts(shape, options.micro_batch, kernels=options.kernels)
    path = "kernels of pretrain/kernels" if options.kernels else "plain torch"
    print(
        f"{config.name}, micro-batch {options.micro_batch}, bf16, {path}; {options.device}: "
        f"{peak / 1e12:,.1f} TFLOP/s, {options.memory_terabytes:g} TB/s (nominal), as much for a "
        f"byte as {peak / device.bytes_per_second:,.0f} operations of a product.\n"
    )
    print("\n".join(_places(parts, device, options.micro_batch)), end="\n\n")
    print("\n".join(_kinds(parts, device)), end="\n\n")
    print("\n".join(_whole(parts, device, shape, options.ranks)))
    print(f"\nPython {platform.python_version()}, torch {torch.__version__}.")
    return 0


def counted_parts(
    shape: Shape, micro_batch: int, *, kernels: bool = False
) -> dict[str, list[Operator]]:
    """Count the operators of every part of a classifier in training.

    Args:
        shape: the network.
        micro_batch: images.
        kernels: count those of `pretrain.kernels` in the place of torch's operators.

    Returns:
        Per part its operators, those of blocks as often as there are such blocks.
    """
    parts: dict[str, list[Operator]] = {}
    with without_storage():
        model = Swin(shape).train()
        use_kernels(model, attention=kernels, layer_norm=kernels)
        pixels = torch.empty(micro_batch, IMAGE_CHANNELS, shape.image_size, shape.image_size)
        parts["patch embedding"] = count(model.patch_embed, pixels)
        for index, stage in enumerate(model.layers):
            assert isinstance(stage, Stage)
            maps = _maps(shape, index, micro_batch)
            parts[f"stage {index + 1}, {shape.channels[index]} channels"] = _blocks(stage, maps)
            if stage.downsample is not None:
                parts[f"patch merging {index + 1}"] = count(stage.downsample, maps)
        targets = torch.empty(micro_batch, shape.num_classes)
        last = _maps(shape, len(model.layers) - 1, micro_batch)
        parts["head, loss"] = count(partial(_losses, model, targets, kernels), last)
    return parts


def _maps(shape: Shape, stage: int, micro_batch: int) -> Tensor:
    """The residual stream of a stage [B, H, W, C]."""
    side = stage_maps(shape)[stage].side
    return torch.empty(micro_batch, side, side, shape.channels[stage], requires_grad=True)


def _blocks(stage: Stage, maps: Tensor) -> list[Operator]:
    operators: list[Operator] = []
    kinds = {index % 2 for index in range(len(stage.blocks))}
    for odd in sorted(kinds):
        block = stage.blocks[odd]
        assert isinstance(block, Block)
        layout = (stage.window, stage.shift, stage.mask) if odd else (stage.window, 0, None)
        scales = torch.empty(2, maps.shape[0], 1, 1, 1)  # as with drop path
        times = len(range(odd, len(stage.blocks), 2))
        operators += times * count(lambda x, b=block, a=(*layout, scales): b(x, *a), maps)
    return operators


def _losses(model: nn.Module, targets: Tensor, kernels: bool, maps: Tensor) -> Tensor:
    assert isinstance(model, Swin)
    cross_entropy = fused_soft_target_cross_entropy if kernels else soft_target_cross_entropy
    logits = model.head(model.norm(maps).mean(dim=(1, 2)))
    with torch.autocast("cpu", enabled=False):
        return cross_entropy(logits, targets).mean()


def _places(parts: dict[str, list[Operator]], device: Device, micro_batch: int) -> list[str]:
    lines = [
        "| part | GFLOP an image | MB an image | FLOP a byte | ms | share | products at the peak, "
        "ms | share of the peak |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    every = [operator for operators in parts.values() for operator in operators]
    whole = sum(map(device.seconds, every))
    for name, operators in [*parts.items(), ("all", every)]:
        flop = sum(operator.flop for operator in operators)
        size_bytes = sum(operator.size_bytes for operator in operators)
        seconds = sum(map(device.seconds, operators))
        reached = flop / device.flop_per_second / seconds
        cells = [
            name,
            f"{flop / micro_batch / 1e9:.2f}",
            f"{size_bytes / micro_batch / 1e6:.1f}",
            f"{flop / size_bytes:.0f}",
            f"{1000 * seconds:.2f}",
            f"{100 * seconds / whole:.1f} %",
            f"{1000 * flop / device.flop_per_second:.2f}",
            f"{100 * reached:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _kinds(parts: dict[str, list[Operator]], device: Device) -> list[str]:
    """Return what each kind of operator takes in each stage, forward and backward."""
    stages = [name for name in parts if name.startswith("stage")]
    headings = " | ".join(name.partition(",")[0] for name in stages)
    lines = [
        f"| ms | {headings} | rest | all | share |",
        "|---|" + "--:|" * (len(stages) + 3),
    ]
    sums: dict[str, dict[str, float]] = {
        kind: defaultdict(float) for kind in [*KINDS.values(), OTHER]
    }
    for name, operators in parts.items():
        for operator in operators:
            place = name if name in stages else "rest"
            sums[operator.kind][place] += device.seconds(operator)
    whole = sum(sum(row.values()) for row in sums.values())
    for kind, row in sums.items():
        cells = [f"{1000 * row[place]:.2f}" for place in [*stages, "rest"]]
        total = sum(row.values())
        cells += [f"{1000 * total:.2f}", f"{100 * total / whole:.1f} %"]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def _whole(parts: dict[str, list[Operator]], device: Device, shape: Shape, ranks: int) -> list[str]:
    """Return the share of the peak that comes of it, and what weights add."""
    every = [operator for operators in parts.values() for operator in operators]
    seconds = sum(map(device.seconds, every))
    products = sum(operator.flop for operator in every) / device.flop_per_second
    touched = weight_bytes(count_parameters(shape), 0, ranks)  # copies and gradients are counted
    weights = touched / device.bytes_per_second
    return [
        f"Buckets of gradients, and AdamW on one of {ranks} ranks: {touched / 1e9:.2f} GB, "
        f"{1000 * weights:.2f} ms.",
        f"{100 * products / (seconds + weights):.0f} % of the peak, were every operator a kernel "
        "of its own that reaches these rates.",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/intensity.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="swin_l_22k", metavar="NAME")
    parser.add_argument("--micro-batch", type=int, default=128, help="images (default: 128)")
    parser.add_argument("--ranks", type=int, default=8, help="that divide AdamW (default: 8)")
    parser.add_argument("--device", default="NVIDIA H200", help="(default: NVIDIA H200)")
    parser.add_argument(
        "--memory-terabytes", type=float, default=4.8, help="a second (default: 4.8, an H200's)"
    )
    parser.add_argument(
        "--kernels", action="store_true", help="with the kernels of pretrain/kernels"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the config")
    return parser


if __name__ == "__main__":
    run_command(main)
