"""``python -m pretrain.metrics VERB …``: what can be made of the records of runs."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pretrain.config.section import Name
from pretrain.errors import ConfigError, LaunchError, run_command
from pretrain.files import replace_text
from pretrain.lookup import RUNS_DIR, find_run
from pretrain.metrics.mirror.dashboard import AXES, STEPS


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
    report.add_argument(
        "--beside",
        type=int,
        metavar="PID",
        help="with the lowest priority, and only while the process that started this lives",
    )
    _add_runs_dir(report)
    repair = verbs.add_parser("repair", help="rebuild what wandb lost, from the record")
    repair.set_defaults(verb=_repair)
    repair.add_argument("run", metavar="RUN", help="name of a run, or its directory")
    _add_runs_dir(repair)
    dashboard = verbs.add_parser("dashboard", help="save a workspace and a report to wandb")
    dashboard.set_defaults(verb=_dashboard)
    dashboard.add_argument("--project", required=True, metavar="P", help="whose runs they show")
    dashboard.add_argument("--entity", metavar="E", help="user or team; the account's default")
    dashboard.add_argument(
        "--evaluations-over",
        choices=AXES,
        default=STEPS,
        help="horizontal axis of the panels of evaluations",
    )
    dashboard.add_argument(
        "--dry-run", action="store_true", help="print what would be sent, as JSON, and send nothing"
    )
    compare = verbs.add_parser("compare", help="overlay runs on one page and tell what differs")
    compare.set_defaults(verb=_compare)
    compare.add_argument("runs", nargs="+", metavar="RUN", help="name of a run, or its directory")
    compare.add_argument(
        "--by", choices=("step", "samples", "hours"), default="step", help="axis of the curves"
    )
    compare.add_argument("--out", default="compare.html", metavar="FILE", help="the page")
    _add_runs_dir(compare)
    return parser


def _add_runs_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs-dir", default=RUNS_DIR, metavar="PATH", help="where runs are that are given by name"
    )


def _report(options: argparse.Namespace) -> int:
    if options.beside is not None:
        os.nice(19)
    from pretrain.metrics.report.page import report_html

    run = find_run(options.run, Path(options.runs_dir))
    html = report_html(run)
    if options.beside not in (None, os.getppid()):
        return 0  # the run has ended: whoever writes its last report must not be overwritten
    try:
        replace_text(run.report_path, html)
    except OSError as error:
        raise LaunchError(f"{run.report_path}: cannot be written: {error.strerror}") from None
    print(run.report_path)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from pretrain.metrics.report.compare import compare_html, print_tables, read_runs

    runs_dir, out = Path(options.runs_dir), Path(options.out)
    facts = read_runs([find_run(name, runs_dir) for name in options.runs])
    try:
        replace_text(out, compare_html(facts, options.by))
    except OSError as error:
        raise LaunchError(f"--out {out}: cannot be written: {error.strerror}") from None
    print_tables(facts)
    print(out.absolute())
    return 0


def _repair(options: argparse.Namespace) -> int:
    from pretrain.metrics.mirror.repair import repair

    print("\n".join(repair(find_run(options.run, Path(options.runs_dir)))))
    return 0


def _dashboard(options: argparse.Namespace) -> int:
    for option in ("project", "entity"):
        _check_name(option, getattr(options, option))
    if options.dry_run:
        from pretrain.metrics.mirror.views import as_json

        print(as_json(options.entity or "", options.project, options.evaluations_over))
        return 0
    from pretrain.metrics.mirror.upload import upload

    print("\n".join(upload(options.project, options.entity, options.evaluations_over)))
    return 0


def _check_name(option: str, name: str | None) -> None:
    try:
        TypeAdapter(Name | None).validate_python(name)
    except ValidationError:
        raise ConfigError(
            f"--{option} {name!r}: expected letters, digits, '.', '_' and '-', the first a letter "
            "or digit"
        ) from None


if __name__ == "__main__":
    run_command(main)
