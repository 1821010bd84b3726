"""Killed again and again at any moment, wandb's own processes too, its files are one whole run."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import pytest

from pretrain.metrics.jsonl import read_lines
from pretrain.metrics.mirror.files import local_files, read_file
from pretrain.metrics.mirror.sending import alert_text, values_of

KILLS = 5
PROGRAM = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from conftest import config_of
    from pretrain.metrics.recorder import Recorder
    from pretrain.run_directory import RunDirectory

    run, attempt, last = RunDirectory({run!r}), int(sys.argv[1]), int(sys.argv[2])
    saved = run.path / "saved"
    resume = int(saved.read_text()) if saved.exists() else 0
    with Recorder(run, config_of("offline"), rank=0, attempt=attempt, resume_step=resume,
                  total_steps=10**6, steps_per_epoch=50) as recorder:
        step, back = resume, attempt % 2 == 0
        while step < last:
            step += 1
            recorder.write(step, {{"train/loss": attempt / step, "train/skipped_steps": 0}})
            if step % 5 == 0:
                recorder.write(step, {{"eval/loss": 1 / step, "eval/images": 8}})
            if step % 20 == 0:
                recorder.sync()
                saved.write_text(str(step))
                recorder.event("checkpoint_failed", step=step, reason="a test")
                recorder.event("checkpoint_saved", step=step, directory="nowhere")
            if back and step == resume + 27:
                back = False
                step = resume + 20 - resume % 20
                recorder.rewind(step)
                recorder.event("rewound", reason="a test", steps_done=resume + 27,
                               checkpoint_step=step)
            time.sleep(0.01)
"""


def family(pid):
    """A process and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(text[text.rindex(")") + 2 :].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def kill_all(pid):
    """Kill them at one moment: none sees another die."""
    pids = family(pid)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for each in pids:
            os.kill(each, number)
    return len(pids)


@pytest.mark.slow
def test_five_kills_and_rewinds_leave_no_gap_and_no_repetition(run):
    draw = random.Random(7)
    program = PROGRAM.format(tests=str(Path(__file__).parents[1]), run=str(run.path))
    command = [sys.executable, "-c", textwrap.dedent(program)]
    processes = []
    for attempt in range(1, KILLS + 1):
        child = subprocess.Popen([*command, str(attempt), str(10**6)])
        ends = time.monotonic() + 60
        while len(family(child.pid)) < 3 and time.monotonic() < ends:  # wandb's has begun
            time.sleep(0.02)
        time.sleep(draw.uniform(0.2, 3.0))
        processes.append(kill_all(child.pid))
        child.wait()
    assert min(processes) == 3, "rank zero, the mirror and wandb's own"
    last = max(line["step"] for line in read_lines(run.metrics_path)) + 10
    subprocess.run([*command, str(KILLS + 1), str(last)], check=True)

    files = [read_file(path) for path in local_files(run.wandb_dir)]
    assert len(files) == KILLS + 1
    ids = {file.run_id for file in files if file.rows}  # one killed at its start has nothing
    assert len(ids) == 1
    assert [file.damage for file in files] == [[]] * len(files)
    rows = [row for file in files for row in file.rows]
    recorded = [
        (line["step"], name) for line in read_lines(run.metrics_path) for name in values_of(line)
    ]
    assert len(recorded) == len(set(recorded))
    sent = [(row["global_step"], name) for row in rows for name in values_of(row)]
    assert sorted(sent) == sorted(recorded)
    for axis in ("global_step", "samples"):
        values = [row[axis] for row in rows]
        assert all(before < after for before, after in pairwise(values))
    alerts = [text for file in files for text in file.alerts]
    events = read_lines(run.events_path)
    told = [alert_text(event) for event in events if event["event"] == "alert"]
    assert any("went back" in text for text in told)
    assert sorted(alerts) == sorted(told)
