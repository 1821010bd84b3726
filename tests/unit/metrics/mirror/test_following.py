"""Whatever happens to a file of lines, each whole one is read once."""

from pretrain.metrics.jsonl import LineWriter, cut_back, cut_torn_end
from pretrain.metrics.mirror.follow import Follower


def test_whole_lines_are_read_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.read() == ([], False), "not there yet"
    writer = LineWriter(path)
    writer.append({"step": 1})
    with path.open("ab") as file:
        file.write(b'{"step"')
    assert follower.read() == ([{"step": 1}], False)
    with path.open("ab") as file:
        file.write(b": 2}\nnot json\n")
    writer.append({"step": 3})
    assert follower.read() == ([{"step": 2}, {"step": 3}], False)
    assert follower.read() == ([], False)


def test_a_torn_end_that_is_removed_is_forgotten(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "a"}\n{"event": "torn')
    follower = Follower(path)
    assert follower.read()[0] == [{"event": "a"}]
    cut_torn_end(path)
    assert follower.read() == ([], False)
    LineWriter(path).append({"event": "b"})
    assert follower.read() == ([{"event": "b"}], False)


def test_a_record_that_is_cut_back_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    follower = Follower(path)
    assert len(follower.read()[0]) == 3
    cut_back(path, 1)
    LineWriter(path).append({"step": 2, "again": True})
    assert follower.read() == ([{"step": 1}, {"step": 2, "again": True}], True)
