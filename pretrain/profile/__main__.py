"""``python -m pretrain.profile TRACE``: the page about a trace that an earlier profile left."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pretrain.errors import run_command
from pretrain.profile.page import render
from pretrain.profile.trace import read_trace, take_apart


def main(arguments: Sequence[str]) -> int:
    """Print the page; return the exit code.

    Raises:
        PretrainError: the trace cannot be read, or holds no whole step.
    """
    parser = argparse.ArgumentParser(prog="python -m pretrain.profile", description=__doc__)
    parser.add_argument("trace", type=Path, help="such as runs/NAME/profile/trace_….json.gz")
    options = parser.parse_args(arguments)
    print(render(take_apart(read_trace(options.trace))), end="")
    return 0


if __name__ == "__main__":
    run_command(main)
