"""``python -m pretrain.augment preview …``: look at what augmentation makes of the images."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from pretrain.errors import ConfigError, run_command
from pretrain.files import replace_bytes
from pretrain.lookup import RUNS_DIR
from pretrain.preview.drawing import COLUMNS, png_of
from pretrain.preview.listing import listing
from pretrain.preview.request import Request, request_of_config, request_of_run
from pretrain.preview.sheet import IMAGES


def main(arguments: Sequence[str]) -> int:
    """Draw a micro-batch, write the file and say what it is; return the exit code.

    Raises:
        PretrainError: bad input, before anything is written.
    """
    options = _parser().parse_intermixed_args(arguments)
    _check(options)
    request = _request(options)
    # Only now is torch worth its seconds.
    from pretrain.preview.remake import sheet_of_request

    sheet = sheet_of_request(request, images=options.images, crops=options.crops)
    try:
        replace_bytes(options.out, png_of(sheet, options.columns))
    except OSError as error:
        raise ConfigError(f"--out: {options.out}: cannot be written: {error.strerror}") from None
    print(f"{options.out}: {sheet.title}")
    if options.list:
        print(*listing(sheet, request.manifest.split(request.config.data.train_split)), sep="\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.augment",
        description="Draw what the model is given in a step, as one PNG.",
    )
    # Not a parser below this one: those do not take key=value between switches.
    parser.add_argument("verb", choices=("preview",), help="the only one there is")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="NAME", help="a file in configs/, or a path to one")
    what.add_argument("--run", metavar="RUN", help="name of a run, or its directory")
    parser.add_argument("--out", required=True, type=Path, metavar="PNG", help="file to write")
    parser.add_argument(
        "--step", type=int, default=0, metavar="N", help="the step after N steps (default: 0)"
    )
    parser.add_argument(
        "--micro-batch",
        type=int,
        default=0,
        metavar="N",
        help="which micro-batch of its global batch, from 0 (default: 0)",
    )
    parser.add_argument(
        "--images", type=int, default=IMAGES, metavar="N", help=f"most images (default: {IMAGES})"
    )
    parser.add_argument(
        "--columns", type=int, default=COLUMNS, metavar="N", help=f"in a row (default: {COLUMNS})"
    )
    parser.add_argument(
        "--crops", action="store_true", help="show above each image the crop it was made of"
    )
    parser.add_argument(
        "--list", action="store_true", help="print also in which shard each image lies"
    )
    parser.add_argument(
        "--runs-dir", default=RUNS_DIR, metavar="PATH", help="where runs are that are given by name"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="with --config")
    return parser


def _check(options: argparse.Namespace) -> None:
    for name in ("images", "columns"):
        value = getattr(options, name)
        if value < 1:
            raise ConfigError(f"--{name}: expected at least 1, got {value}")
    if options.run is not None and options.overrides:
        raise ConfigError(
            f"--run {options.run}: its config is settled; key=value goes with --config"
        )
    out, folder = options.out, options.out.absolute().parent
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out: {out}: expected a name that ends in .png")
    if out.is_dir():
        raise ConfigError(f"--out: {out}: is a directory; expected a file to write")
    if not folder.is_dir():
        raise ConfigError(f"--out: {out}: {folder} is not a directory; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: {out}: {folder} is not writable; give another path")


def _request(options: argparse.Namespace) -> Request:
    which = {"step": options.step, "number": options.micro_batch}
    if options.run is not None:
        return request_of_run(options.run, Path(options.runs_dir), **which)
    return request_of_config(options.config, options.overrides, **which)


if __name__ == "__main__":
    run_command(main)
