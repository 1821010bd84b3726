"""A process that no longer moves says where it stands and ends."""

import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from launch.supervise.hang import read_stack
from pretrain.config.guard import WatchdogConfig
from pretrain.errors import EXIT_HUNG
from pretrain.watchdog import Watchdog

HANG = """
import ctypes, sys, threading, time
from pathlib import Path
from pretrain import watchdog
from pretrain.config.guard import WatchdogConfig
watchdog.BACKSTOP_SECONDS = float(sys.argv[3])
watchdog.LINGER_SECONDS = 0.2

def waits_for_ever():
    print("waits", flush=True)
    if sys.argv[2] == "holding the lock":
        time.sleep(0.8)
        ctypes.PyDLL(None).sleep(60)
    time.sleep(60)

dog = watchdog.Watchdog(Path(sys.argv[1]), WatchdogConfig(data_seconds=1.2), "start")
dog.enter("data")
waits_for_ever()
"""


@pytest.mark.parametrize(("how", "code"), [("sleeping", EXIT_HUNG), ("holding the lock", 1)])
def test_a_hung_process_leaves_its_stacks(tmp_path: Path, how: str, code: int) -> None:
    stacks = tmp_path / "attempt" / "stacks.txt"
    ended = subprocess.run(
        [sys.executable, "-c", HANG, str(stacks), how, "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    assert "waits_for_ever" in stacks.read_text()
    if code == EXIT_HUNG:
        written = read_stack(stacks.read_text())
        assert written is not None
        assert not written.stopped
        assert f"hung: data took more than 1.2 s; stacks: {stacks}" in ended.stderr


def test_what_moves_is_left_alone(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks.txt"
    settings = WatchdogConfig(start_seconds=1.5, step_seconds=1.5, evaluation_seconds=1.5)
    with closing(Watchdog(stacks, settings, "start")) as dog:
        moves = dog.alive_at(lambda number: number + 1)
        dog.enter("evaluation")
        for number in range(4):
            time.sleep(0.6)
            assert moves(number) == number + 1
        for phase in ("step", "save", "step"):
            dog.enter(phase)
            time.sleep(0.4)
    assert not stacks.exists()
    dog.close()


def test_a_process_that_was_stopped_says_so_when_it_is_woken(tmp_path: Path) -> None:
    """As Slurm wakes the processes that it ends."""
    stacks = tmp_path / "stacks.txt"
    command = [sys.executable, "-c", HANG, str(stacks), "sleeping", "30"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == EXIT_HUNG
    written = read_stack(stacks.read_text())
    assert written is not None
    assert written.stopped, stacks.read_text()
