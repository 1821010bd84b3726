"""Candidates in processes of their own: whatever becomes of one is a row, and nothing is left."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pretrain.errors import ConfigError
from pretrain.tune import child
from pretrain.tune.child import Order, carry_out, measured
from pretrain.tune.measure import kind_of
from pretrain.tune.trials import Failure, Measured

ORDER = Order("cpu", 1, os.getpid())
FOUND = {
    "images_per_second": 5.0,
    "spread_fraction": 0.1,
    "start_seconds": 2.0,
    "peak_bytes": 3,
    "held_bytes": 4,
}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch):
    """Let the process run these lines in the place of the program that measures."""
    return lambda text: monkeypatch.setattr(child, "PROGRAM", ("-c", text))


def test_what_a_process_finds_is_what_was_measured(program):
    program(
        'print(\'{"doing": "warm-up"}\', flush=True)\n'
        f"print({json.dumps(json.dumps({'found': FOUND}))}, flush=True)\n"
        "import time; time.sleep(60)"  # its end need not be waited for
    )
    heard: list[str] = []
    assert measured(carry_out(ORDER, 30, heard.append)) == Measured(**FOUND)
    assert heard[0] == "its start"
    assert set(heard) <= {"its start", "warm-up"}


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "memory", "host's memory"),
        ("import os; os.abort()", "crash", "killed by SIGABRT"),
        ("raise ValueError('no kernel')", "crash", "exit code 1: ValueError: no kernel"),
        ("import sys; sys.exit('terminate: std::bad_alloc')", "memory", "std::bad_alloc"),
        ("pass", "crash", "exit code 0: it said nothing"),
        ("import time; time.sleep(60)", "time", "over 1 s, at its start"),
        ("print('{\"failed\": \"compile\", \"reason\": \"no g++\"}')", "compile", "no g++"),
    ],
)  # fmt: skip
def test_every_other_end_is_a_reason(program, text, kind, reason):
    program(text)
    failure = measured(carry_out(ORDER, 1 if kind == "time" else 30))
    assert isinstance(failure, Failure)
    assert (failure.kind, reason in failure.reason) == (kind, True), failure


def test_a_limit_of_the_system_on_memory_is_a_lack_of_memory(program):
    program(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))\n"
        "held = bytearray(2**29)"
    )
    failure = measured(carry_out(ORDER, 30))
    assert isinstance(failure, Failure)
    assert failure.kind == "memory"


def test_the_children_of_a_process_go_with_it(program, tmp_path: Path):
    note = tmp_path / "pid"
    program(
        "import subprocess, time\n"
        "one = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(note)!r}, 'w').write(str(one.pid))\n"
        "print('{\"found\": {}}', flush=True)\n"
        "time.sleep(60)"
    )
    assert carry_out(ORDER, 30).found == {}
    assert _gone(int(note.read_text()))


def test_a_process_ends_with_the_one_that_waits_for_it(tmp_path: Path):
    """Killed without a word, as a scheduler may, a tuning leaves nothing that holds the device."""
    waits = (
        "from pretrain.tune import child\n"
        "import os\n"
        "child.PROGRAM = ('-c', 'import os, sys, json, time\\n'\n"
        "    'from pretrain.data.children import serve\\n'\n"
        "    'serve(json.loads(sys.argv[1])[\"parent\"])\\n'\n"
        "    'print(json.dumps({\"doing\": str(os.getpid())}), flush=True)\\n'\n"
        "    'time.sleep(60)')\n"
        "child.carry_out(child.Order('cpu', 1, os.getpid()), 60, lambda at: print(at, flush=True))"
    )
    command = [sys.executable, "-c", waits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        number = next(int(line) for line in waiting.stdout if line.strip().isdigit())
        waiting.kill()
    assert _gone(number)


def _gone(number: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def _raised(module: str) -> Exception:
    """An error of a class that a part of torch defines."""
    return type("BackendCompilerFailed", (RuntimeError,), {"__module__": module})("no g++")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (ConfigError("engine.layer_norm: apex is not installed"), "refused"),
        (_raised("torch._dynamo.exc"), "compile"),
        (_raised("torch._inductor.exc"), "compile"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "crash"),
    ],
)
def test_errors_are_sorted_by_what_would_cure_them(error, kind):
    assert kind_of(error) == kind
