"""Each kernel against plain torch on a GPU; and what they take of a GPU, which need not be there.

python benchmarks/kernels.py [--rounds 7] [--micro-batch 128] [--output benchmarks/kernels.md]

With a GPU: forward and backward of attention, norms and loss at the sizes of each stage of Swin-L,
kernel and plain torch in turns; milliseconds, and medians of ratios [least, greatest]. Without one:
registers, shared memory and spilled bytes of every program, compiled for sm_80 and sm_90 by the
compiler that triton brings.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from pretrain.config.load import load_run
from pretrain.models.variants import Shape, shape_of, stage_maps
from pretrain.models.windows import MASKED_LOGIT

ARCHITECTURES = (80, 90)
CONFIGS = {
    "V1, 224": ("swin_l_22k",),
    "V1, 384": ("swin_l_22k", "model.image_size=384", "model.window_size=12"),
    "V2, 256": ("swin_l_22k", "model.variant=swinv2_l", "model.image_size=256",
                "model.window_size=16"),
}  # fmt: skip
_IN_BF16 = (
    "qkv", "out", "out_grad", "qkv_grad", "branch", "normal", "branch_grad", "normal_grad",
    "logits", "logits_grad",
)  # fmt: skip
_SIZES = (
    "windows", "groups", "rows", "rows_per_image", "classes", "elements", "elements_per_image",
)  # fmt: skip


class Usage(NamedTuple):
    """What a program takes of a GPU."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def shape(name: str) -> Shape:
    """The network of a row."""
    config, *overrides = CONFIGS[name]
    return shape_of(load_run(config, overrides).model)


def constants(network: Shape, stage: int, *, shifted: bool) -> dict[str, Any]:
    """What attention of a stage is compiled for, in bf16."""
    from pretrain.kernels.attention import program_constants

    side, window, shift = stage_maps(network)[stage]
    side += -side % window
    return program_constants(
        (1, side, side, 3 * network.channels[stage]), torch.bfloat16, network.heads[stage], window,
        shift if shifted else 0, MASKED_LOGIT, cosine=network.family == "v2",
    )  # fmt: skip


def usage(program: Any, chosen: dict[str, Any], architecture: int, warps: int) -> Usage:
    """Compile a program for a GPU; outside Triton's interpreter."""
    from triton import compile as compile_program
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pretrain.kernels.attention import STAGES

    signature = {
        name: "constexpr" if name in chosen else "i32" if name in _SIZES
        else "*bf16" if name in _IN_BF16 else "*fp32"
        for name in program.arg_names
    }  # fmt: skip
    compiled = compile_program(
        ASTSource(program, signature, constexprs=chosen),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": warps, "num_stages": STAGES},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = knobs.nvidia.cuobjdump.path
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(re.findall(rf"{word}:(\d+)", text)[-1]) for word in ("REG", "STACK"))
    return Usage(registers, stack, compiled.metadata.shared)


Program = tuple[Any, dict[str, Any], int]
"""With the constants that it is compiled for, and its warps."""


def attention_programs(chosen: dict[str, Any]) -> list[Program]:
    """The programs of an attention."""
    from pretrain.kernels import attention_programs as every
    from pretrain.kernels.attention import BACKWARD_WARPS, WARPS

    backward = [every.attention_backward]
    if chosen["TILES"] > 1:
        backward = [
            every.attention_backward_queries,
            every.attention_backward_keys,
            every.attention_backward_bias,
        ]
    return [
        (every.attention_forward, chosen, WARPS),
        *((program, chosen, BACKWARD_WARPS) for program in backward),
    ]


def other_programs(channels: int) -> list[Program]:
    """The programs of norms, residual sums and the loss, which have Triton's default of 4 warps."""
    from pretrain.kernels import cross_entropy_programs as loss
    from pretrain.kernels import layer_norm_programs as norm
    from pretrain.kernels.cross_entropy import BLOCK
    from pretrain.kernels.layer_norm import program_constants
    from pretrain.kernels.residual import BLOCK as RESIDUAL_BLOCK

    found: list[Program] = [
        (norm.add_scaled, {"BLOCK": RESIDUAL_BLOCK, "ADDED": True, "SCALED": True}, 4),
        (loss.forward, {"BLOCK": BLOCK}, 4),
        (loss.backward, {"BLOCK": BLOCK}, 4),
    ]
    for post in (False, True):
        chosen = program_constants(channels, branched=True, scaled=True, post=post)
        found.append((norm.forward, chosen | {"EPS": 1e-5}, 4))
        found.append((norm.backward, chosen | {"ADDED": True}, 4))
    return found


def all_programs() -> Iterator[tuple[str, Program]]:
    """Attention of the first stages, shifted, which takes most, and what is beside it."""
    for name in CONFIGS:
        network = shape(name)
        for program in attention_programs(constants(network, 0, shifted=True)):
            yield f"{name}, attention", program
    channels_of_stages = shape("V1, 224").channels
    for channels in (channels_of_stages[0], channels_of_stages[-1]):
        for program in other_programs(channels):
            yield f"{channels} channels", program


def resource_rows() -> Iterator[str]:
    """The table without a GPU."""
    yield "| of | program | warps | GPU | registers a thread | spilled bytes | shared KiB |"
    yield "|---|---|--:|---|--:|--:|--:|"
    for name, (program, chosen, warps) in all_programs():
        for architecture in ARCHITECTURES:
            found = usage(program, chosen, architecture, warps)
            module = program.fn.__module__.rpartition(".")[2].removesuffix("_programs")
            yield (
                f"| {name} | {module}: {program.__name__} | {warps} | sm_{architecture} "
                f"| {found.registers} | {found.spilled_bytes} | {found.shared_bytes / 1024:.1f} |"
            )


def with_backward(function: Callable[..., torch.Tensor], *inputs: Any) -> Callable[[], None]:
    """A call of a function and of its backward pass under bf16 autocast."""
    leaves = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]

    def call() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            out = function(*inputs)
        torch.autograd.grad(out.float().sum(), leaves)

    return call


def pairs(network: Shape, micro_batch: int) -> Iterator[tuple[str, Callable, Callable]]:
    """Of each part its name, the kernel, and plain torch, as calls on the device."""
    from pretrain.engine.classification import soft_target_cross_entropy
    from pretrain.kernels.cross_entropy import fused_soft_target_cross_entropy
    from pretrain.models.swin import Block, Swin

    device = torch.device("cuda")
    model = Swin(network)
    for stage, (side, window, shift) in enumerate(stage_maps(network)):
        size = (micro_batch, side, side, network.channels[stage])
        x = torch.randn(size, device=device, requires_grad=True)
        scales = torch.ones(2, micro_batch, 1, 1, 1, device=device)
        mask = model.layers[stage].mask
        mask = mask.to(device) if isinstance(mask, torch.Tensor) else None
        calls = {}
        for fused in (True, False):
            block = Block(network, stage, 0.0).to(device)
            assert block.attn is not None
            block.attn.fused = fused
            calls[fused] = with_backward(block.attn, x, window, shift, mask)
        yield f"attention and its products, stage {stage + 1}", calls[True], calls[False]
        for fused in (True, False):
            block = Block(network, stage, 0.0).to(device)
            block.fused_norms = fused
            calls[fused] = with_backward(block, x, window, 0, None, scales)
        yield f"block with fused norms, stage {stage + 1}", calls[True], calls[False]
    logits = torch.randn(micro_batch, 21_841, device=device).bfloat16().requires_grad_()
    targets = torch.randn(micro_batch, 21_841, device=device).softmax(-1)
    losses = (fused_soft_target_cross_entropy, soft_target_cross_entropy)
    ours, plain = (with_backward(loss, logits, targets) for loss in losses)
    yield "cross-entropy of 21,841 classes", ours, plain


def milliseconds(call: Callable[[], None], calls: int = 5) -> float:
    """Of one call, by the device's clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


def timed_rows(micro_batch: int, rounds: int) -> Iterator[str]:
    """The table with a GPU."""
    yield "| network | part | kernel, ms | plain torch, ms | plain ÷ kernel |"
    yield "|---|---|--:|--:|--:|"
    for name in CONFIGS:
        for part, ours, plain in pairs(shape(name), micro_batch):
            for call in (ours, plain):  # compiles
                milliseconds(call, 2)
            taken = [(milliseconds(ours), milliseconds(plain)) for _ in range(rounds)]
            ratios = sorted(theirs / mine for mine, theirs in taken)
            yield (
                f"| {name} | {part} | {median(mine for mine, _ in taken):.3f} "
                f"| {median(theirs for _, theirs in taken):.3f} "
                f"| {median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] |"
            )
            torch.cuda.empty_cache()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Kernels against plain torch.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--micro-batch", type=int, default=128)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    gpu = torch.cuda.is_available()
    os.environ.pop("TRITON_INTERPRET", None)
    where = torch.cuda.get_device_name() if gpu else "compiled for GPUs, none of them here"
    lines = [
        f"{where}; torch {torch.__version__}, triton {version('triton')}"
        + (f"; micro-batch {given.micro_batch}, {given.rounds} rounds." if gpu else "."),
        "",
    ]
    for line in timed_rows(given.micro_batch, given.rounds) if gpu else resource_rows():
        print(line, file=sys.stderr)
        lines.append(line)
    text = "\n".join(lines)
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
