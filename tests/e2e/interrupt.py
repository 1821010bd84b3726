"""Ctrl-C for programs that tests start."""

import signal


def hear_ctrl_c() -> None:
    """For ``preexec_fn``: a shell's background jobs, the tests maybe among them, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
