"""The process that sends a run's record to Weights & Biases; `WandbMirror` starts it.

``python -m pretrain.metrics.mirror.process RUN/wandb/mirror.json`` follows the run's metrics.jsonl
and events.jsonl until its standard input says ``stop`` or ends, or its parent is gone. What it has
to send it finds by reading the run's own ``.wandb`` files back. ``--last CODE`` sends what is left
and ends the run with that exit code. Output goes to mirror.log; a line ``error: …`` is the reason
of a failure, ``note: …`` what the server does while wandb waits for it. Any failure is an exit
code, and nobody's loss.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.metrics.mirror.files import local_files, read_file
from pretrain.metrics.mirror.follow import Follower
from pretrain.metrics.mirror.probe import server_problem
from pretrain.metrics.mirror.sending import SAMPLES, STEP, Rows, sent_by
from pretrain.metrics.mirror.telling import Teller
from pretrain.metrics.names import METRICS
from pretrain.run_lock import try_lock

POLL_SECONDS = 1.0
FLUSH_SECONDS = 0.5
"""wandb's own interval is 15 s: a killed job would lose that much of its offline file."""
PATIENCE_SECONDS = 2.0
"""How long the server may take before it is looked at."""
CORE_SECONDS = 10.0
"""Longest that wandb's own process goes on after the one that started it was killed."""
EXIT_FAILED = 1
LOCK_NAME = "mirror.lock"
"""Held by the one process that writes wandb's files of a run."""


class Stop(threading.Event):
    """Set when the mirror is to end.

    Attributes:
        orderly: whether the record is complete: its last step is, and nothing comes after.
    """

    orderly = False


@contextmanager
def deadline(seconds: float, what: str, *, online: bool) -> Iterator[None]:
    """End this process if the block takes longer; before that, look what the server does.

    wandb tries again and again without a word, and whoever waits for this process may end it.
    """
    over = threading.Event()

    def give_up() -> None:
        print(f"error: {what} took more than {seconds:g} s", flush=True)  # noqa: T201
        os._exit(EXIT_FAILED)

    def look() -> None:
        wrong = server_problem()
        if wrong and not over.is_set():
            print(f"note: {wrong}", flush=True)  # noqa: T201

    timers = [threading.Timer(seconds, give_up)]
    timers += [threading.Timer(PATIENCE_SECONDS, look)] if online else []
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        over.set()
        for timer in timers:
            timer.cancel()
    print("note: ", flush=True)  # noqa: T201 - what was wrong is no longer


def start_run(settings: dict[str, Any]) -> Any:
    """Import wandb and start its run; nothing of this process but the config is recorded."""
    import wandb

    wait_for_a_name(Path(settings["directory"]))
    run = wandb.init(
        project=settings["project"],
        entity=settings["entity"],
        name=settings["name"],
        id=settings["id"],
        resume="allow" if settings["mode"] == "online" else None,
        config=settings["config"],
        dir=str(Path(settings["directory"]).parent),  # wandb appends its own "wandb"
        settings=wandb.Settings(
            mode=settings["mode"],
            console="off",
            silent=True,
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            init_timeout=settings["start_seconds"],
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            x_stats_pid=settings["rank_pid"],
            x_transaction_log_flush_interval=FLUSH_SECONDS,
        ),
    )
    for axis in (STEP, SAMPLES):
        run.define_metric(axis, hidden=True)
    for group in dict.fromkeys(name.partition("/")[0] for name in METRICS):
        run.define_metric(f"{group}/*", step_metric=SAMPLES if group == "eval" else STEP)
    return run


def wait_for_a_name(directory: Path) -> None:
    """Wait until wandb, which names directories by the second, takes one that is not there."""
    while any(directory.glob(f"*run-{time.strftime('%Y%m%d_%H%M%S')}-*")):
        time.sleep(0.1)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Wait until no mirror of an earlier attempt writes any more, and keep later ones waiting."""
    path = directory / LOCK_NAME
    while (descriptor := try_lock(path)) is None:
        time.sleep(0.1)
    try:
        before = os.pread(descriptor, 32, 0).decode(errors="replace")
        ends = time.monotonic() + CORE_SECONDS
        while before.isdigit() and core_of(before) and time.monotonic() < ends:
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def core_of(pid: str) -> bool:
    """Whether wandb's own process still lives that was started by another, now gone."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"wandb-core") and pid.encode() in words:
            return True
    return False


def mirror(settings: dict[str, Any], stop: Stop, exit_code: int | None) -> None:
    """Send the record and the events until told to stop, then finish the run.

    Args:
        settings: what `WandbMirror` wrote.
        stop: is waited for.
        exit_code: the run's; None takes 0 from an orderly stop, else 1.
    """
    directory, online = Path(settings["directory"]), settings["mode"] == "online"
    with alone(directory):
        sent = sent_by(read_file(path) for path in local_files(directory))
        with deadline(settings["start_seconds"], "starting wandb", online=online):
            run = start_run(settings)
        rows = Rows(sent, settings["images_per_step"])
        teller = Teller(run, settings, sent)
        record = Follower(Path(settings["metrics_path"]))
        events = Follower(Path(settings["events_path"]))
        while True:
            last = stop.is_set()  # asked before reading: what was written before the stop is read
            lines, cut_back = record.read()
            if cut_back:
                rows.forget()
            for line in lines:
                if isinstance(line.get("step"), int) and (row := rows.add(line)):
                    run.log(row)
            teller.hear(events.read()[0])
            if last:
                break
            teller.tell()
            stop.wait(POLL_SECONDS)
        if stop.orderly and (row := rows.end()):
            run.log(row)
        teller.tell_all()
        code = int(not stop.orderly) if exit_code is None else exit_code
        with deadline(settings["finish_seconds"], "finishing wandb", online=online):
            run.finish(exit_code=code)


def watch(stop: Stop) -> None:
    """Set ``stop`` when standard input says so, and when the parent is gone."""
    parent = os.getppid()

    def read_input() -> None:
        stop.orderly = sys.stdin.readline() == "stop\n"
        stop.set()

    def check_parent() -> None:
        while os.getppid() == parent and not stop.wait(POLL_SECONDS):
            pass
        stop.set()

    threading.Thread(target=read_input, daemon=True).start()
    threading.Thread(target=check_parent, daemon=True).start()


def end_some_time(stop: Stop, seconds: float) -> None:
    """End this process if it has not ended so long after the stop: nobody may be there to do it."""

    def give_up() -> None:
        stop.wait()
        time.sleep(seconds)
        print(f"error: did not end within {seconds:g} s", flush=True)  # noqa: T201
        os._exit(EXIT_FAILED)

    threading.Thread(target=give_up, daemon=True).start()


def main(arguments: Sequence[str]) -> int:
    """Mirror the run that the settings describe; the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=Path)
    parser.add_argument("--last", type=int, metavar="CODE")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    stop = Stop()
    if options.last is None:
        watch(stop)
    else:
        stop.orderly = True
        stop.set()
    try:
        settings = json.loads(options.settings.read_text(encoding="utf-8"))
        end_some_time(stop, settings["start_seconds"] + 2 * settings["finish_seconds"])
        mirror(settings, stop, options.last)
    except Exception as error:  # noqa: BLE001 - whatever wandb raises, the reason is all we keep
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()])
        print(f"error: {reason.removesuffix(':')}", flush=True)  # noqa: T201
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(exit_code)  # wandb's own exit hooks may hang
