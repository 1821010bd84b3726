"""The command line of ``python -m pretrain.evaluate``. No torch."""

import argparse
from pathlib import Path

from pretrain.errors import ConfigError

SQUASH = "squash"
LEAVE_OUT_SWITCH = "--leave-out-unknown-classes"


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m pretrain.evaluate",
        description="Top-1 and top-5 accuracy of weights on shard sets, in the processes this is "
        "started in: alone, under torchrun or srun. Classes are matched by WordNet id; a set is "
        "evaluated over its own classes only.",
    )
    add = made.add_argument
    add(
        "weights_path",
        metavar="WEIGHTS",
        type=Path,
        help="a run, a checkpoint, an export, or another layout",
    )
    add(
        "--data",
        metavar="SHARD_SET",
        action="append",
        required=True,
        help="directory or URL of a shard set; again for each further one",
    )
    add("--split", metavar="NAME", help="default: the only one, else validation")
    add(
        "--real",
        metavar="FILE",
        type=Path,
        help="ReaL labels (real.json), for the set that has as many images as the file labels",
    )
    add(
        LEAVE_OUT_SWITCH,
        action="store_true",
        help="evaluate without the classes that the model does not know, and without their images",
    )
    add("--weights", choices=("ema", "raw"), help="default: what the source gives by itself")
    add(
        "--classes",
        type=Path,
        metavar="FILE|SHARD_SET",
        help="for weights that do not say the WordNet ids of their head's rows: one a line, or the "
        "shard set whose labels they are in the order of",
    )
    _add_preprocessing(made)
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: auto")
    add("--batch-size", type=int, default=128, metavar="N", help="images per rank (default: 128)")
    add("--workers", type=int, metavar="N", help="loader processes per rank (default: by cores)")
    add("--cache-dir", metavar="DIR", help="where files of remote sets are kept")
    add(
        "--output",
        type=Path,
        default=Path("evaluation"),
        metavar="DIR",
        help="gets NAME.json and NAME.md (default: evaluation)",
    )
    add("--name", help="of the files (default: from WEIGHTS)")
    return made


def _add_preprocessing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image-size", type=int, metavar="PIXELS", help="default: as the model was trained")
    add(
        "--resize",
        metavar=f"PIXELS|{SQUASH}",
        help="short side before the centre is cut out, or none (default: as recorded with the "
        "weights, else by the recipe for the image size: 256 for 224, squash from 384)",
    )
    add("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="default: as recorded")
    add("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="default: as recorded")


def check_numbers(options: argparse.Namespace) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        ConfigError: with the option, what it wants and what it got.
    """
    for option, value, least in (
        ("--batch-size", options.batch_size, 1),
        ("--workers", options.workers, 0),
        ("--image-size", options.image_size, 1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{option}: expected at least {least}, got {value}")
    if options.resize not in (None, SQUASH) and not options.resize.isdecimal():
        raise ConfigError(f"--resize: expected pixels or {SQUASH!r}, got {options.resize!r}")
