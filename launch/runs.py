"""The command that looks after runs: ``python launch/runs.py list|status|follow|logs|stop|…``."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":
    # Python puts launch/ first; its modules are no top-level names, and this source tree is meant.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.look_after.cleaning import clean_run
from launch.look_after.follow import follow
from launch.look_after.listing import list_runs, show_status
from launch.look_after.logs import log_tail
from launch.look_after.reading import attempt_numbers, show_logs
from launch.look_after.resuming import resume_run
from launch.look_after.stopping import stop_run
from launch.look_after.why import explain, text
from launch.submit import read_job
from pretrain.errors import run_command
from pretrain.lookup import RUNS_DIR, find_run
from pretrain.run_directory import RunDirectory
from pretrain.run_lock import lock_holder

LOG_LINES = 50
FOLLOW_LINES = 10
ALL_LINES = "all"


def main(arguments: list[str]) -> int:
    """Carry out one verb.

    Returns:
        Its exit code: 0; when following or resuming also 70 failed, 75 stopped, 130 left alone;
        70 where `stop` did not save; 1 where `clean` was not agreed to.

    Raises:
        PretrainError: bad input, or something that cannot be done.
    """
    options = _parse(arguments)
    if options.verb == "list":
        return list_runs(Path(options.runs_dir), active=options.active, as_json=options.json)
    options.typed = ["python", "launch/runs.py", *arguments]
    return _VERBS[options.verb](find_run(options.run, Path(options.runs_dir)), options)


def _status(run: RunDirectory, options: argparse.Namespace) -> int:
    return show_status(run, as_json=options.json)


def _follow(run: RunDirectory, options: argparse.Namespace) -> int:
    attempts = attempt_numbers(run)
    for line in log_tail(run.rank_log(attempts[-1], 0), FOLLOW_LINES) if attempts else []:
        print(line)
    job = read_job(run)
    if lock_holder(run) and job is not None and job.executor == "local":
        asks = "leaves it alone" if options.watch_only else "asks it to save and stop"
        print(f"{run.path.name}: Ctrl-C {asks}; closing this window leaves it alone")
    return follow([run], watch_only=options.watch_only)


def _logs(run: RunDirectory, options: argparse.Namespace) -> int:
    return show_logs(
        run,
        attempt=options.attempt,
        rank=options.rank,
        supervisor=options.supervisor,
        every=options.all,
        lines=options.lines,
        keep_on=options.follow,
    )


def _stop(run: RunDirectory, options: argparse.Namespace) -> int:
    return stop_run(run, now=options.now, wait=options.wait)


def _resume(run: RunDirectory, options: argparse.Namespace) -> int:
    return resume_run(run, options.overrides, command=options.typed, follow_on=options.follow)


def _why(run: RunDirectory, options: argparse.Namespace) -> int:
    explanation = explain(run)
    print(
        json.dumps(asdict(explanation), indent=1, default=str)
        if options.json
        else text(explanation)
    )
    return 0


def _clean(run: RunDirectory, options: argparse.Namespace) -> int:
    return clean_run(
        run, keep_checkpoints=options.checkpoints, everything=options.all, agreed=options.yes
    )


_VERBS: dict[str, Callable[[RunDirectory, argparse.Namespace], int]] = {
    "status": _status,
    "follow": _follow,
    "logs": _logs,
    "stop": _stop,
    "resume": _resume,
    "clean": _clean,
    "why": _why,
}


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _parser()
    options, left = parser.parse_known_args(arguments)
    # argparse takes no further words after an option; verbs cannot be parsed intermixed.
    if options.verb == "resume" and not any(word.startswith("-") for word in left):
        options.overrides += left
    elif left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/runs.py",
        description="Look after runs, on this machine and in Slurm alike. RUN is a name below the "
        "runs directory, or the path of a run.",
        epilog="docs/launching.md, Living with runs, has every verb and the keys of --json.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="every run, the one launched last first")
    listing.add_argument("--active", action="store_true", help="only those that a job has")
    status = verbs.add_parser("status", help="all that is known of a run")
    following = verbs.add_parser("follow", help="last lines and a progress bar, until the end")
    following.add_argument(
        "--watch-only", action="store_true", help="Ctrl-C leaves a run on this machine alone too"
    )
    logs = verbs.add_parser("logs", help="what a rank printed; rank 0 of the last attempt")
    stop = verbs.add_parser("stop", help="save, and end for good")
    stop.add_argument("--now", action="store_true", help="end at once, without saving")
    stop.add_argument(
        "--no-wait", dest="wait", action="store_false", help="return when it has been asked"
    )
    resume = verbs.add_parser("resume", help="go on with a run that ended")
    clean = verbs.add_parser("clean", help="remove what is no longer needed; asks first")
    why = verbs.add_parser("why", help="why a run ended or does not move, and what to do next")
    for verb in (status, following, logs, stop, resume, clean, why):
        verb.add_argument("run", metavar="RUN", help="name or path of the run")
    for verb in (listing, status, following, logs, stop, resume, clean, why):
        verb.add_argument("--runs-dir", default=RUNS_DIR, metavar="PATH", help="default: runs")
    for verb in (listing, status, why):
        verb.add_argument("--json", action="store_true", help="for programs")
    _add_logs(logs)
    _add_resume(resume)
    _add_clean(clean)
    return parser


def _add_logs(logs: argparse.ArgumentParser) -> None:
    add = logs.add_argument
    add("--attempt", type=int, metavar="K", help="default: the last")
    add("--rank", type=int, default=0, metavar="N", help="default: 0")
    add("--supervisor", action="store_true", help="the supervisor's log instead of a rank's")
    add("--all", action="store_true", help="the supervisor's and every rank's, below headings")
    add("--follow", action="store_true", help="go on until the run ends; Ctrl-C only leaves")
    add(
        "--lines",
        type=_lines,
        default=LOG_LINES,
        metavar=f"N|{ALL_LINES}",
        help=f"from the end (default: {LOG_LINES})",
    )


def _add_resume(resume: argparse.ArgumentParser) -> None:
    resume.add_argument(
        "overrides", nargs="*", metavar="key=value", help="fields that do not decide what is learnt"
    )
    resume.add_argument(
        "--follow",
        action=argparse.BooleanOptionalAction,
        help="watch until the end (default: local yes, Slurm no)",
    )


def _add_clean(clean: argparse.ArgumentParser) -> None:
    add = clean.add_argument
    add("--yes", action="store_true", help="do not ask")
    what = clean.add_mutually_exclusive_group()
    what.add_argument(
        "--checkpoints", type=_positive, metavar="N", help="all but the N newest sound ones too"
    )
    what.add_argument("--all", action="store_true", help="the whole directory, export included")


def _lines(text: str) -> int | None:
    return None if text == ALL_LINES else _positive(text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    run_command(main)
