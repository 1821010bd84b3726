"""Lets a run die on a private Slurm cluster, over and over, and compares it with its twin.

python benchmarks/soak.py --faults 50 --seed 0 [--report benchmarks/soak.md]

Brings up the cluster, trains the uninterrupted twin, then the run, under faults drawn from
`soak_faults.FAULTS`: a shuffled deck of all kinds, and the next one when it is used up. Nobody
helps the run; dead machines come back once it has noticed. At the end samples, record, state and
exported weights must be the twin's to the bit.
"""

import argparse
import importlib.metadata
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from private_cluster import PrivateCluster, missing_program
from soak_faults import FAULTS, Endured, endure
from soak_run import EPOCH_STEPS, WatchedRun, differences, make_project, wait_until

from launch.ledger import read_attempts

NODES = 3
"""One more than the run takes."""
REQUEUE_SECONDS = 6
"""As Slurm's AuthInfo=cred_expire, the site's knob: 5 is the least it takes."""
NODE_TIMEOUT_SECONDS = 6
MOST_STEPS_BEFORE = 12
"""Steps that an attempt trains, at most, before the next fault strikes."""


@dataclass(frozen=True)
class Soak:
    """Everything runs are trained with: a source, a cluster, and the twin that nothing befell."""

    source: Path
    cluster: PrivateCluster
    twin: WatchedRun

    def watch(self, name: str) -> WatchedRun:
        """A run of the same config, not launched yet."""
        return WatchedRun(self.source, name, self.cluster)


@contextmanager
def prepared(root: Path, *, epochs: int) -> Iterator[Soak]:
    """Bring up the cluster and train the twin.

    Args:
        root: an empty directory.
        epochs: length of the runs.
    """
    (root / "cluster").mkdir()
    cluster = PrivateCluster(
        root / "cluster",
        NODES,
        requeue_seconds=REQUEUE_SECONDS,
        node_timeout_seconds=NODE_TIMEOUT_SECONDS,
    )
    source = make_project(root, epochs=epochs)
    with cluster.running():
        twin = WatchedRun(source, "twin", cluster)
        twin.launch()
        twin.wait_until_done()
        yield Soak(source, cluster, twin)


def let_die(run: WatchedRun, kinds: Sequence[str], rng: random.Random) -> list[Endured]:
    """Launch a run, twice at once, and let every fault happen to it in turn, to its end.

    Raises:
        RuntimeError: it did not survive, or its end came before the last fault.
    """
    outputs = run.launch_twice()
    if sum("submitted as job" in output for output in outputs) != 1:
        raise RuntimeError(f"submitted other than once: {outputs}")
    endured: list[Endured] = []
    for kind in kinds:
        _wait_for_steps(run, rng.randint(1, MOST_STEPS_BEFORE))
        if run.directory.is_done():
            raise RuntimeError(f"the run was done before fault {len(endured) + 1} of {len(kinds)}")
        endured.append(endure(run, kind, rng))
        print(f"{len(endured)}: {endured[-1]}", flush=True)
    run.wait_until_done()
    return endured


def _wait_for_steps(run: WatchedRun, steps: int) -> None:
    """Wait until the attempt under way has trained so far, and saved if the one before did not.

    Ever so many deaths without a newer checkpoint are a crash loop, which rightly ends a run.
    """
    wait_until(lambda: run.attempt() is not None, "the first attempt")

    def far_enough() -> bool:
        attempts, newest = read_attempts(run.directory), run.newest_record()
        starts = [attempt.checkpoint_step_before or 0 for attempt in attempts]
        if run.directory.is_done():
            return True
        if newest["attempt"] != attempts[-1].number or newest["step"] < starts[-1] + steps:
            return False
        if run.is_being_ended():  # the fault before is not over for this job
            return False
        has_saved = (run.directory.newest_checkpoint_step() or 0) > starts[-1]
        return has_saved or (len(starts) > 1 and starts[-1] > starts[-2])

    wait_until(far_enough, f"{steps} steps")


def draw(count: int, rng: random.Random) -> list[str]:
    """Kinds of faults: every kind once in random order, then again."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(sorted(FAULTS), len(FAULTS))
    return drawn[:count]


def report(endured: Sequence[Endured], *, twin: WatchedRun, run: WatchedRun, seconds: float) -> str:
    """What happened, as a Markdown table by kind of fault, and how long it took."""
    lines = [
        "| fault | times | noticed after, s | trains again after, s | steps done again |",
        "|---|--:|--:|--:|--:|",
    ]
    for kind, fault in FAULTS.items():
        chosen = [one for one in endured if one.kind == kind]
        if chosen:
            lines.append(f"| {fault.meaning} | {_row(chosen)} |")
    lines.append(f"| **all** | {_row(endured)} |")
    steps = run.newest_record()["step"]
    attempts = len(read_attempts(run.directory))
    lost = sum(one.lost_steps for one in endured)
    return "\n".join(
        [
            *lines,
            "",
            f"{len(endured)} faults, {attempts} attempts, {steps} steps and {lost} of them again, "
            f"in {seconds / 60:.0f} minutes; the twin took {_training_seconds(twin) / 60:.1f}. "
            "Samples, record, state and exported weights: the twin's, to the bit.",
        ]
    )


def _row(chosen: Sequence[Endured]) -> str:
    noticed = [one.detection_seconds for one in chosen if one.detection_seconds is not None]
    again = [one.recovery_seconds for one in chosen]
    lost = [one.lost_steps for one in chosen]
    return f"{len(chosen)} | {_spread(noticed)} | {_spread(again)} | {_spread(lost, '.0f')}"


def _spread(values: Sequence[float], form: str = ".1f") -> str:
    """Median and worst."""
    if not values:
        return "nothing to notice"
    return f"{statistics.median(values):{form}} (worst {max(values):{form}})"


def _training_seconds(run: WatchedRun) -> float:
    (attempt,) = read_attempts(run.directory)
    return run.newest_record()["time"] - attempt.start_time


def _versions() -> str:
    slurm = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True)
    packages = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed")}
    return (
        f"{slurm.stdout.strip()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in packages.items())
        + f"; {time.strftime('%Y-%m-%d')}"
    )


def _soak(root: Path, faults: int, seed: int, epochs: int) -> str | None:
    """The report; None, and what is wrong on standard error, where the run is not its twin."""
    rng = random.Random(seed)
    with prepared(root, epochs=epochs) as soak:
        run = soak.watch("survivor")
        began = time.monotonic()
        try:
            endured = let_die(run, draw(faults, rng), rng)
        except RuntimeError as error:
            ledger = run.directory.attempts_path.read_text().splitlines()
            print("\n".join([*ledger[-10:], str(error)]), file=sys.stderr)
            return None
        seconds = time.monotonic() - began
        wrong = differences(run, soak.twin)
        print("\n".join(wrong[:20]), file=sys.stderr)
        return None if wrong else report(endured, twin=soak.twin, run=run, seconds=seconds)


def main(arguments: Sequence[str]) -> int:
    """Soak; 0 where the run is its twin to the bit, 1 where not, 2 where it cannot be tried."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="draws the faults and their moments")
    parser.add_argument("--epochs", type=int, help=f"of {EPOCH_STEPS} steps (default: 3 per fault)")
    parser.add_argument("--directory", type=Path, help="work in this new directory and keep it")
    parser.add_argument("--report", type=Path, help="write the tables here, too")
    options = parser.parse_args(arguments)
    missing = missing_program()
    if missing is not None:
        print(f"{missing} is not on PATH (Debian: apt-get install slurm-wlm)", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        if options.directory is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        else:
            root = options.directory.absolute()
            root.mkdir(parents=True)
        text = _soak(root, options.faults, options.seed, options.epochs or 3 * options.faults)
    if text is None:
        return 1
    command = f"python benchmarks/soak.py --faults {options.faults} --seed {options.seed}"
    command += f" --epochs {options.epochs}" if options.epochs else ""
    text = f"```sh\n{command}\n```\n\n{text}\n\n{_versions()}.\n"
    print(text)
    if options.report is not None:
        options.report.write_text(_HEAD + text, encoding="utf-8")
    return 0


_HEAD = """\
# Soak: a run under faults

A small Swin on 2 nodes of a private Slurm cluster of 3, one gloo rank each, saving every 5 steps,
while faults strike it in random order at random steps. No human action: dead machines come back
once the run has noticed. Slurm holds requeued jobs for 6 s (`AuthInfo=cred_expire`, 120 s by
default) and has 6 s of patience with silent nodes (`SlurmdTimeout`, 300 s by default); the
watchdog's deadline for a step is 10 s. Jobs submitted beside the run's own are cancelled once they
have been seen to wait; left alone, one takes over at the next fault. Times are median and worst:
from the fault until the attempt's end was recorded or Slurm took the job from its nodes, and until
the next step was recorded.

"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
