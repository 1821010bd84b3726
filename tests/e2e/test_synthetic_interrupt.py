"""Ctrl-C while the demo's images are painted: quiet, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time

from interrupt import hear_ctrl_c


def test_ctrl_c_ends_painting_without_a_traceback(tmp_path):
    destination = tmp_path / "set"
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools.synthetic", str(destination), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.rglob("*.JPEG")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no picture was painted"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
