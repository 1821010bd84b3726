"""``python -m pretrain.convert SRC DST --to LAYOUT``: weights from any layout to any other."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pretrain.convert.targets import EVERY
from pretrain.errors import run_command
from pretrain.world import world_from_environment

_TIMEOUT_SECONDS = 1800
"""Longest wait of other ranks for the one that converts."""


def main(arguments: Sequence[str]) -> int:
    """Convert, and verify if asked to; return the exit code. Of several ranks, rank zero does it.

    Raises:
        PretrainError: bad input, before anything is written; or a result that does not compute
            what the source does.
        RefusedTogetherError: on another rank, if rank zero refuses.
    """
    options = parser().parse_args(arguments)
    world = world_from_environment()
    if world.size == 1:
        convert(options)
        return 0
    import torch

    from pretrain import dist

    dist.initialize(world, torch.device("cpu"), _TIMEOUT_SECONDS)
    try:
        with dist.refusing_together():
            if world.rank == 0:
                convert(options)
    finally:
        dist.shutdown()  # or the threads of the groups may abort a process that ends
    return 0


def convert(options: argparse.Namespace) -> None:
    """Convert, and verify if asked to, in this process alone.

    Raises:
        PretrainError: bad input, or a result that does not compute what the source does.
    """
    # Only now is torch worth its seconds.
    from pretrain.convert.read import load
    from pretrain.convert.verify import verify
    from pretrain.convert.write import check_destination, write

    source, destination = Path(options.source), Path(options.destination)
    check_destination(destination, options.to)
    loaded = load(
        source,
        choice=options.weights,
        image_size=options.image_size,
        window_size=options.window,
        classes=options.classes,
    )
    model = loaded.model
    head = f"{model.num_classes:,} classes" if loaded.has_head else "no head"
    print(
        f"{source}: {loaded.layout}, {model.variant}, {model.image_size} pixels, "
        f"window {model.window_size}, {head}"
    )
    for note in loaded.notes:
        print(f"  {note}")
    if loaded.has_head and loaded.labels.ids is None:
        print("  the source does not say which class each row of the head is (--classes)")
    write(loaded, destination, options.to, provenance={"converted_from": source.name})
    print(f"{destination}: {options.to}")
    if options.verify:
        print(verify(loaded, destination, options.to))


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m pretrain.convert",
        description="Convert Swin weights between layouts; what SRC is, is found out.",
    )
    made.add_argument(
        "source",
        metavar="SRC",
        help="a run, checkpoint or export of ours; a DeepSpeed, timm or transformers directory; "
        "or a .pth or .safetensors file",
    )
    made.add_argument(
        "destination", metavar="DST", help="where nothing is yet: a directory, or a file's name"
    )
    made.add_argument("--to", required=True, choices=EVERY, help="the layout to write")
    made.add_argument(
        "--weights", choices=("raw", "ema"), help="which, where SRC has both (default: raw)"
    )
    made.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="trained on, where SRC does not say"
    )
    made.add_argument(
        "--window", type=int, metavar="TOKENS", help="window side of V2, where SRC does not say"
    )
    made.add_argument(
        "--classes",
        metavar="PATH",
        type=Path,
        help="ids of the head's rows: a text file (id, or id and name after a tab) or a shard set",
    )
    made.add_argument(
        "--verify", action="store_true", help="compute with the result in its own library"
    )
    return made


if __name__ == "__main__":
    run_command(main)
