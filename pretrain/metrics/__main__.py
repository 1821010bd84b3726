"""``python -m pretrain.metrics VERB …``: what can be made of the records of runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pretrain.errors import run_command
from pretrain.lookup import RUNS_DIR, find_run


def main(arguments: Sequence[str]) -> int:
    """Run one of the verbs; return the exit code.

    Raises:
        PretrainError: bad input.
    """
    options = _parser().parse_args(arguments)
    return options.verb(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pretrain.metrics", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    report = verbs.add_parser("report", help="write report.html anew")
    report.set_defaults(verb=_report)
    report.add_argument("run", metavar="RUN", help="name of a run, or its directory")
    _add_runs_dir(report)
    return parser


def _add_runs_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs-dir", default=RUNS_DIR, metavar="PATH", help="where runs are that are given by name"
    )


def _report(options: argparse.Namespace) -> int:
    from pretrain.metrics.report.page import write_report

    print(write_report(find_run(options.run, Path(options.runs_dir))))
    return 0


if __name__ == "__main__":
    run_command(main)
