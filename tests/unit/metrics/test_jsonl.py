"""Lines survive kills and are cut back without loss or repetition."""

import errno
import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.metrics.jsonl import LineWriter, cut_back, cut_torn_end, plain, read_lines, series


def write(path, *values):
    with LineWriter(path) as writer:
        for value in values:
            writer.append(value)


def test_lines_come_back_as_written(tmp_path):
    path = tmp_path / "a.jsonl"
    values = [{"step": 1, "text": "ä\n\u2028"}, {"step": 2, "deep": {"list": [1, None, 0.1]}}]
    write(path, *values)
    assert read_lines(path) == values
    assert path.read_bytes().count(b"\n") == 2


def test_numbers_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, {"step": 1, "loss": math.nan, "norm": [math.inf, 1.0]})
    assert read_lines(path) == [{"step": 1, "loss": None, "norm": [None, 1.0]}]
    assert plain({"path": path, 3: (1, 2)}) == {"path": str(path), "3": [1, 2]}


def test_a_line_is_on_its_way_before_the_next_call(tmp_path):
    path = tmp_path / "a.jsonl"
    writer = LineWriter(path)
    writer.append({"step": 1})
    assert read_lines(path) == [{"step": 1}]
    writer.close()
    writer.close()


class Disk:
    """A file on a disk that takes so many bytes more."""

    name = "a.jsonl"
    closed = False

    def __init__(self, file):
        self.file, self.room, self.fileno = file, 10**9, file.fileno

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def close(self):
        self.closed = True
        self.file.close()


def test_what_a_full_disk_does_not_take_waits_and_no_line_is_torn(tmp_path):
    path = tmp_path / "a.jsonl"
    writer = LineWriter(path)
    disk = writer._file = Disk(writer._file)  # type: ignore[assignment]
    assert writer.append({"step": 1}) is None
    disk.room = 5
    error = writer.append({"step": 2})
    assert error is not None
    assert error.errno == errno.ENOSPC
    assert writer.append({"step": 3}) is not None
    with pytest.raises(OSError, match=r"space.*a\.jsonl"):
        writer.sync()
    assert [line["step"] for line in read_lines(path)] == [1]
    disk.room = 10**9
    assert writer.append({"step": 4}) is None
    writer.sync()
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4]
    disk.room = 0
    writer.append({"step": 5})
    with pytest.raises(OSError, match="space"):
        writer.close()
    assert disk.closed
    writer.close()


def test_cutting_back_removes_later_steps_and_keeps_the_rest_untouched(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, *({"step": step, "x": step / 3} for step in (10, 20, 20, 30, 40)))
    before = path.read_bytes().splitlines(keepends=True)
    cut = cut_back(path, 20)
    assert [line["step"] for line in cut.kept] == [10, 20, 20]
    assert (cut.removed, cut.damaged) == (2, 0)
    assert path.read_bytes() == b"".join(before[:3])
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_cut_touches_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    assert cut_back(path, 5).kept == ()
    assert not path.exists()
    write(path, {"step": 1})
    inode = path.stat().st_ino
    assert cut_back(path, 5).removed == 0
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("damage", [b'{"step": 3, "lo', b'{"step": 3}', b"\x00\xff\n", b"[1]\n"])
def test_a_damaged_end_costs_its_line_only(tmp_path, damage):
    path = tmp_path / "a.jsonl"
    write(path, {"step": 1}, {"step": 2})
    whole = path.read_bytes()
    path.write_bytes(whole + damage)
    cut = cut_back(path, 9)
    assert (len(cut.kept), cut.removed, cut.damaged) == (2, 0, 1)
    assert path.read_bytes() == whole


def test_damage_in_the_middle_costs_its_line_only(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "\xff\n{"no": 1}\n{"step": 3}\n')
    cut = cut_back(path, 9)
    assert [line["step"] for line in cut.kept] == [1, 3]
    assert cut.damaged == 2
    assert read_lines(path) == [{"step": 1}, {"step": 3}]


def test_a_torn_end_is_removed_in_place(tmp_path):
    path = tmp_path / "a.jsonl"
    cut_torn_end(path)
    path.write_bytes(b'{"a": 1}\n{"b"')
    cut_torn_end(path)
    assert path.read_bytes() == b'{"a": 1}\n'
    path.write_bytes(b'{"b"')
    cut_torn_end(path)
    assert path.read_bytes() == b""


def test_a_series_leaves_out_what_was_not_measured():
    records = [{"step": 1, "a": 2.0}, {"step": 2, "a": None}, {"step": 3}, {"step": 4, "a": 0.0}]
    assert series(records, "a") == [(1, 2.0), (4, 0.0)]


@settings(deadline=None, max_examples=50)
@given(cut=st.integers(0, 400), last_step=st.integers(0, 12))
def test_whatever_byte_a_kill_stops_at_the_record_stays_sound(tmp_path_factory, cut, last_step):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    lines = [json.dumps({"step": step, "train/loss": 1 / (step + 1)}) for step in range(10)]
    path.write_bytes("".join(line + "\n" for line in lines).encode()[:cut])
    kept = cut_back(path, last_step).kept
    write(path, *({"step": step} for step in range(last_step + 1, 12)))
    steps = [line["step"] for line in read_lines(path)]
    assert steps[: len(kept)] == list(range(len(kept)))
    assert steps[len(kept) :] == list(range(last_step + 1, 12))
