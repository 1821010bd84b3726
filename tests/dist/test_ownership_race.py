"""Attempts that start at the same time on one run: after one took over, none before it commits."""

import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from pretrain.checkpoint.ownership import check_owner, number_of, take_over
from pretrain.errors import OwnershipError

ATTEMPTS = 4


def attempt(directory: Path, log: Path, begin: float, seed: int) -> None:
    """Take over at a random moment, then commit as fast as it goes, as a save does."""
    draws = random.Random(seed)
    time.sleep(max(0.0, begin - time.monotonic()) + draws.random() * 0.02)
    lines: list[list] = []
    try:
        area = directory / take_over(directory, 1)
        number = number_of(area.name)
        seen = sorted(path.name for path in directory.glob("step_*"))
        lines.append(["owner", area.name, time.monotonic(), seen])
        end = time.monotonic() + 0.03
        count = 0
        while time.monotonic() < end:
            count += 1
            name = f"step_{number:04d}{os.getpid():09d}{count:06d}"
            (area / name).mkdir()
            (area / name / "half").write_text("1")
            (area / name / "whole").write_text("2")
            began = time.monotonic()
            (area / name).rename(directory / name)
            lines.append(["commit", area.name, began, name])
    except (OSError, OwnershipError) as error:
        lines.append(["fenced", type(error).__name__, 0.0, str(error)])
    log.write_text(json.dumps(lines))


def race(root: Path, number: int) -> tuple[int, int]:
    """Let attempts race once; return how many committed and how many were fenced off."""
    directory = root / str(number)
    directory.mkdir(parents=True)
    begin = time.monotonic() + 0.03
    context = multiprocessing.get_context("fork")
    logs = [directory / f"{index}.json" for index in range(ATTEMPTS)]
    processes = [
        context.Process(target=attempt, args=(directory / "c", log, begin, number * 10 + index))
        for index, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    lines = [line for log in logs for line in json.loads(log.read_text())]
    owners = {who: (when, seen) for kind, who, when, seen in lines if kind == "owner"}
    commits = [(who, when, name) for kind, who, when, name in lines if kind == "commit"]
    for who, when, name in commits:
        for other, (taken, seen) in owners.items():
            if other > who:
                assert when < taken, f"{who} committed {name} after {other} had taken over"
                assert name in seen, f"{other} did not see {name}"
    found = {path.name for path in (directory / "c").glob("step_*")}
    assert found == {name for _, _, name in commits}  # nothing torn, nothing lost
    for name in found:
        assert {path.name for path in (directory / "c" / name).iterdir()} == {"half", "whole"}
    last = max(owners)
    check_owner(directory / "c", last)
    assert [path.name for path in (directory / "c").glob("attempt_*")] == [last]
    fenced = sum(line[0] == "fenced" for line in lines)
    shutil.rmtree(directory)
    return len({who for who, _, _ in commits}), fenced


def _races(root: Path, count: int) -> None:
    outcomes = [race(root, number) for number in range(count)]
    assert any(committed > 1 for committed, _ in outcomes)  # one was interrupted at its work
    assert any(fenced for _, fenced in outcomes)


def test_races_have_one_writer_at_a_time(tmp_path):
    _races(tmp_path, 15)


@pytest.mark.slow
def test_a_thousand_races_have_one_writer_at_a_time(tmp_path):
    _races(tmp_path, 1000)
