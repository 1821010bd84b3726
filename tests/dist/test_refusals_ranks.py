"""What any rank refuses ends all of them with one code; rank zero alone says it."""

import os
import socket
import subprocess
import sys
import time

import pytest
from ranks import run_ranks


def test_one_message_for_all_ranks(tmp_path):
    weights = tmp_path / "x.pth"
    weights.write_bytes(b"\x80cut")
    refusals = [["no set", "no set"], [None, "no set here"], ["this", "that"], [None, None]]
    zero, one = run_ranks("cases_refusals:refuse", 2, refusals, str(weights))
    assert zero[:4] == [
        ["DataError", "no set"],
        ["PretrainError", "rank 1: no set here"],
        ["PretrainError", "rank 0: this\nrank 1: that"],
        ["went on"],
    ]
    assert one[:4] == [["RefusedTogetherError", "rank zero says why"]] * 3 + [["went on"]]
    # Ranks of a run have a log each.
    assert zero[4] == one[4]
    assert zero[4][0].startswith(f"init_from: {weights}: ")


def command_in_ranks(size, module, arguments_of):
    """Exit codes and standard errors of a command in ranks that find each other themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments_of(rank))],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    deadline = time.monotonic() + 120
    try:
        said = [rank.communicate(timeout=max(deadline - time.monotonic(), 1))[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], [
        [line for line in text.splitlines() if line.startswith("error:")] for text in said
    ]


@pytest.mark.slow
def test_evaluation_says_it_once_even_if_one_rank_alone_refuses(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"<html>")
    (tmp_path / "y.pth").write_bytes(b"\x80 not looked into before torch is there")

    def arguments(rank):
        return [tmp_path / ("x.pth" if rank else "y.pth"), "--data", tmp_path / "none"]

    codes, said = command_in_ranks(2, "pretrain.evaluate", arguments)
    assert codes == [2, 2]
    assert said[1] == []
    assert len(said[0]) == 2
    assert "rank 0: " in said[0][0]
    assert f"rank 1: {tmp_path / 'x.pth'}: expected weights, got a web page" in said[0][1]


@pytest.mark.slow
def test_conversion_is_rank_zeros(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"<html>")
    codes, said = command_in_ranks(
        2, "pretrain.convert", lambda _: [tmp_path / "x.pth", tmp_path / "t", "--to", "timm"]
    )
    assert codes == [2, 2]
    assert [len(lines) for lines in said] == [1, 0]
