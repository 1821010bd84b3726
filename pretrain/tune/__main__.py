"""``python -m pretrain.tune --config NAME [key=value …]``: find the fastest settings that fit."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pretrain.errors import ConfigError, EngineError, run_command
from pretrain.metrics.console import duration
from pretrain.plan.memory import GIB
from pretrain.plan.tuned import write_tuned
from pretrain.tune.bench import Bench, result_of
from pretrain.tune.search import search
from pretrain.tune.subject import Subject, subject_of
from pretrain.tune.table import outcome_text, table
from pretrain.tune.trials import Row, Trials

LEAST_MINUTES = 0.1


def main(arguments: Sequence[str]) -> int:
    """Tune, print the table and write the file; return 0.

    Raises:
        PretrainError: bad input, no device, or no candidate that works; nothing was written.
    """
    screen = Screen()
    options = _parser().parse_intermixed_args(arguments)
    if min(options.minutes, options.candidate_minutes) < LEAST_MINUTES:
        raise ConfigError(f"--minutes, --candidate-minutes: expected {LEAST_MINUTES} or more")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no child is to outlive this
    subject = subject_of(options.config, options.overrides, options.cluster, options.ranks)
    print(_heading(subject), flush=True)
    screen.total_seconds = 60 * options.minutes
    own = subject.space.own
    with tempfile.TemporaryDirectory(prefix="pretrain-tune-") as folder:
        bench = Bench(subject, Path(folder), options.measured_seconds, screen.status)
        trials = Trials(
            bench.measure,
            bench.estimate_bytes,
            subject.memory_bytes,
            60 * options.candidate_minutes,
            screen.seconds_left,
            lambda row: screen.line(f"{row.candidate.label(own)}: {outcome_text(row.outcome)}"),
            subject.run_images,
        )
        try:
            whole = search(subject.space, trials)
        except KeyboardInterrupt:
            screen.clear()
            print(f"\n{table(trials, own, None)}\nstopped: no file is written", flush=True)
            raise
    screen.clear()
    best = trials.best(own)
    print(f"\n{table(trials, own, best)}\n", flush=True)
    if not whole:
        print(f"not all was tried in {options.minutes:g} minutes; --minutes gives it more")
    return _conclude(subject, trials, best)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.tune",
        description="Measure which micro-batch, activation checkpointing and engine settings train "
        "a config fastest on one device of this machine, and keep them for its runs.",
    )
    add = parser.add_argument
    add("--config", required=True, metavar="NAME", help="a file in configs/, or a path to one")
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="config fields; one that would be tuned is settled by that",
    )
    add(
        "--cluster",
        metavar="NAME",
        help="file in configs/clusters/ that the runs will be given (default: this machine)",
    )
    add("--ranks", type=int, metavar="N", help="ranks of the runs (default: what --plan says)")
    add("--minutes", type=float, default=10.0, help="for everything (default: 10)")
    add(
        "--candidate-minutes",
        type=float,
        default=4.0,
        metavar="MINUTES",
        help="most for each candidate (default: 4)",
    )
    add(
        "--measured-seconds",
        type=float,
        default=6.0,
        metavar="SECONDS",
        help="for how long the steps of each are timed (default: 6)",
    )
    return parser


def _heading(subject: Subject) -> str:
    config, ranks = subject.config, subject.world_size
    return (
        f"{config.name} on one {subject.device} with {subject.memory_bytes / GIB:.1f} GiB free, "
        f"for {ranks} rank{'s'[: ranks > 1]} and a global batch of {config.batch.global_size}"
    )


def _conclude(subject: Subject, trials: Trials, best: Row | None) -> int:
    own = trials.row_of(subject.space.own)
    if best is None:
        tried = len(trials.rows)
        said = outcome_text(own.outcome) if own else "there was no time"
        raise EngineError(f"tune: none of {tried} candidates works; the config's own: {said}")
    result = result_of(subject, best, own)
    write_tuned(subject.path, result)
    before = result.images_per_second_before
    gain = ", as the config has it"
    if best is not own:
        gain = (
            f", {best.rate / before:.2f} times the config's own"
            if before
            else "; the config's own does not work here"
        )
    print(
        f"taken: {' '.join(best.candidate.overrides)}\n"
        f"{result.images_per_second:,.1f} images/s of one rank alone{gain}\n"
        f"written: {subject.path}; runs of {subject.name} take it up, tuned=none refuses it"
    )
    return 0


class Screen:
    """Lines of progress, and on a terminal one more that says what is going on."""

    def __init__(self) -> None:
        self.total_seconds = 0.0
        self._begin = time.monotonic()
        self._terminal = sys.stdout.isatty()

    def seconds_left(self) -> float:
        """Until the time for all candidates is over."""
        return self.total_seconds - self._passed()

    def line(self, text: str) -> None:
        """Say something that stays."""
        self.clear()
        print(f"{duration(self._passed()):>5}  {text}", flush=True)

    def status(self, text: str) -> None:
        """Say what is going on."""
        if self._terminal:
            passed = f"{duration(self._passed())} of {duration(self.total_seconds)}"
            print(f"\r\x1b[K{passed}  {text}"[:100], end="", flush=True)

    def clear(self) -> None:
        """Take away what is going on."""
        if self._terminal:
            print("\r\x1b[K", end="", flush=True)

    def _passed(self) -> float:
        return time.monotonic() - self._begin


if __name__ == "__main__":
    run_command(main)
