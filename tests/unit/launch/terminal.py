"""A terminal of a chosen size, with a program in it whose screen can be read."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte

ROOT = Path(__file__).parents[3]
PATIENCE_SECONDS = 60.0
COLOURS = re.compile(rb"\x1b\[[0-9;]*m")


class Terminal:
    """Runs a program until `close`.

    Attributes:
        written: every byte that the program wrote.
    """

    def __init__(self, command: Sequence[str | Path], columns: int, **environment: str) -> None:
        self.written = b""
        self._screen = pyte.Screen(columns, 24)
        self._stream = pyte.ByteStream(self._screen)
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.resize(columns)
        hidden = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM")
        inherited = {key: value for key, value in os.environ.items() if key not in hidden}
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=inherited | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | environment,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
        )
        os.close(follower)

    def resize(self, columns: int) -> None:
        """Make it another width; what is on the screen stays where it is."""
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._screen.resize(24, columns)

    def rows(self) -> list[str]:
        """What is on the screen, without empty rows."""
        while select.select([self._leader], [], [], 0.05)[0]:
            try:
                chunk = os.read(self._leader, 65536)
            except OSError:  # what Linux says when the other side is closed
                break
            self.written += chunk
            self._stream.feed(chunk)
        return [row.rstrip() for row in self._screen.display if row.strip()]

    def wait(self, holds: Callable[[str], bool]) -> list[str]:
        """The screen, once its text is as it should be."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds("\n".join(rows := self.rows())):
            assert time.monotonic() < deadline, "\n".join(rows)
        return rows

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._leader)
