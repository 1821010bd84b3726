"""What was sent is not sent again, what was not is."""

import threading

import pytest

from pretrain.metrics.jsonl import LineWriter
from pretrain.metrics.mirror import process as wandb_process
from pretrain.metrics.mirror.process import Mark, follow, new_lines


def lines(*steps):
    return [{"step": step, "number": number} for number, step in enumerate(steps)]


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (Mark(), [0, 1, 2, 3, 4]),
        (Mark(10, 1), [1, 2, 3, 4]),
        (Mark(20, 1), [2, 3, 4]),
        (Mark(20, 2), [3, 4]),
        (Mark(30, 1), [4]),
        (Mark(99, 1), []),
    ],
)
def test_only_what_was_not_sent_is_new(mark, expected):
    record = lines(10, 20, 20, 30, 40)
    assert [line["number"] for line in new_lines(record, mark)] == expected
    if expected:
        assert (mark.step, mark.lines) == (40, 1)


def test_a_replay_that_goes_further_sends_the_rest_only():
    mark = Mark()
    assert len(list(new_lines(lines(10, 20, 20, 30), mark))) == 4
    assert [line["step"] for line in new_lines(lines(10, 20, 20, 30, 40, 40), mark)] == [40, 40]
    assert (mark.step, mark.lines) == (40, 2)


def test_following_waits_for_whole_lines_and_reads_what_was_written_before_the_stop(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(wandb_process, "POLL_SECONDS", 0.01)
    path = tmp_path / "metrics.jsonl"
    writer = LineWriter(path)
    writer.append({"step": 1})
    with path.open("ab") as file:
        file.write(b'{"step"')
    stop = threading.Event()
    rounds = []
    following = follow(path, stop, end_of_round=lambda: rounds.append(1))
    assert next(following) == {"step": 1}
    with path.open("ab") as file:
        file.write(b": 2}\nnot json\n")
    assert next(following) == {"step": 2}
    writer.append({"step": 3})
    stop.set()
    assert list(following) == [{"step": 3}]
    assert rounds
