"""The process that sends a run's record to Weights & Biases; `WandbMirror` starts it.

``python -m pretrain.metrics.mirror.process RUN/wandb/mirror.json`` follows the run's metrics.jsonl
until its standard input says ``stop`` or ends, or its parent is gone. Output goes to mirror.log; a
line ``error: …`` is the reason of a failure. Any failure is an exit code, and nobody's loss.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.files import read_json, replace_text
from pretrain.metrics.jsonl import parse_line

POLL_SECONDS = 1.0
FLUSH_SECONDS = 0.5
"""wandb's own interval is 15 s: a killed job would lose that much of its offline file."""
EXIT_FAILED = 1
NOT_SENT = ("step", "time", "attempt")


@dataclass
class Mark:
    """How far the record was sent: the last step, and how many of its lines."""

    step: int = 0
    lines: int = 0


def new_lines(lines: Iterable[dict[str, Any]], sent: Mark) -> Iterator[dict[str, Any]]:
    """The lines of a record, read from its start, that were not sent yet; moves ``sent`` on."""
    step = seen = 0
    for line in lines:
        step, seen = line["step"], seen + 1 if line["step"] == step else 1
        if (step, seen) > (sent.step, sent.lines):
            sent.step, sent.lines = step, seen
            yield line


def follow(
    path: Path, stop: threading.Event, end_of_round: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """The objects of a growing file of JSON lines, until ``stop`` is set and its end is reached."""
    pending = b""
    with path.open("rb") as file:
        while True:
            last = stop.is_set()  # asked before reading: what was written before the stop is read
            *lines, pending = (pending + file.read()).split(b"\n")
            for line in lines:
                value = parse_line(line)
                if value is not None and isinstance(value.get("step"), int):
                    yield value
            if last:
                return
            stop.wait(POLL_SECONDS)
            end_of_round()


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """End this process if the block takes longer."""

    def give_up() -> None:
        print(f"error: {what} took more than {seconds:g} s", flush=True)  # noqa: T201
        os._exit(EXIT_FAILED)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def start_run(settings: dict[str, Any]) -> Any:
    """Import wandb and start its run; nothing of this process but the config is recorded."""
    import wandb

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
    # Our own step: wandb's starts at 0 again in every offline attempt.
    run.define_metric("global_step")
    run.define_metric("*", step_metric="global_step")
    return run


def mirror(settings: dict[str, Any], stop: threading.Event) -> None:
    """Send the record until told to stop, then finish the run."""
    mark_path = Path(settings["directory"]) / "mirrored.json"
    known = read_json(mark_path) or {}
    sent = Mark(int(known.get("step", 0)), int(known.get("lines", 0)))

    def save_mark() -> None:
        replace_text(mark_path, json.dumps({"step": sent.step, "lines": sent.lines}) + "\n")

    with deadline(settings["start_seconds"], "starting wandb"):
        run = start_run(settings)
    # The mark is saved a round later than the lines were logged: by then they are on the disk.
    lines = follow(Path(settings["metrics_path"]), stop, end_of_round=save_mark)
    for line in new_lines(lines, sent):
        values = {name: value for name, value in line.items() if name not in NOT_SENT}
        run.log({"global_step": line["step"], **values})
    with deadline(settings["finish_seconds"], "finishing wandb"):
        run.finish(exit_code=0)
    save_mark()


def watch(stop: threading.Event) -> None:
    """Set ``stop`` when standard input says so, and when the parent is gone."""
    parent = os.getppid()

    def read_input() -> None:
        sys.stdin.readline()
        stop.set()

    def check_parent() -> None:
        while os.getppid() == parent and not stop.wait(POLL_SECONDS):
            pass
        stop.set()

    threading.Thread(target=read_input, daemon=True).start()
    threading.Thread(target=check_parent, daemon=True).start()


def main(settings_path: Path) -> int:
    """Mirror the run that the settings describe; the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    stop = threading.Event()
    watch(stop)
    try:
        mirror(json.loads(settings_path.read_text(encoding="utf-8")), stop)
    except Exception as error:  # noqa: BLE001 - whatever wandb raises, the reason is all we keep
        reason = " ".join(str(error).split())
        print(f"error: {type(error).__name__}: {reason}", flush=True)  # noqa: T201
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    exit_code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(exit_code)  # wandb's own exit hooks may hang
