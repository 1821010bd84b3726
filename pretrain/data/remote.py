"""Fetches files from a server, a bucket or a command: resumed when broken, checked, never stuck.

Every transfer is a child process (`pretrain.data.transfer`, or the command of a ``pipe:``) whose
output is read here, with a deadline on each wait. Passing failures are tried again, after pauses
that double, from the byte that was reached; what the server refuses for good is said at once.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from pretrain.config.schema import DataConfig
from pretrain.data import transfer
from pretrain.errors import DataError
from pretrain.location import RemoteFile, is_pipe

_CHUNK_BYTES = 2**20
_HEAD_BYTES = 4096
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_COMMAND_TRIES = 3


@dataclass(frozen=True)
class Patience:
    """How long to wait for what.

    Attributes:
        stall_seconds: for a connection and the first byte, and then for each further byte.
        retry_seconds: for a server that fails, since it last sent something new.
        least_bytes_per_second: a file that comes slower than this all in all is given up.
    """

    stall_seconds: float = 60.0
    retry_seconds: float = 300.0
    least_bytes_per_second: int = 2**18

    def total_seconds(self, size: int) -> float:
        """The deadline for one file of that many bytes, all tries together."""
        return 2 * self.stall_seconds + self.retry_seconds + size / self.least_bytes_per_second


def patience_of(data: DataConfig) -> Patience:
    """The deadlines that a config sets."""
    return Patience(data.remote_stall_seconds, data.remote_retry_seconds)


LAUNCH_PATIENCE = Patience(stall_seconds=10.0, retry_seconds=5.0)
"""For a person at a prompt."""


class _BrokenError(Exception):
    """A transfer ended early; another may do better."""


class _WrongError(Exception):
    """The bytes are not those that the manifest promises."""


class _Sink(Protocol):
    """Where bytes go."""

    etag: str | None

    @property
    def size(self) -> int:
        """Bytes there are."""
        ...

    def begin(self, etag: str | None) -> None:
        """Forget everything; what follows begins at the first byte."""
        ...

    def append(self, data: bytes) -> None: ...


def read_bytes(file: RemoteFile, most_bytes: int, patience: Patience) -> bytes:
    """Fetch a small file into memory.

    Raises:
        DataError: it is not there, too large, or does not come in time.
    """
    sink = _Memory()
    try:
        _fill(file, sink, None, most_bytes, patience)
    except _WrongError as error:
        raise DataError(f"{file}: {error}") from None
    return bytes(sink.data)


def download(
    file: RemoteFile, partial: Path, note: Path, *, size: int, sha256: str, patience: Patience
) -> None:
    """Fetch a file to ``partial``, going on where an earlier try was broken off, and verify it.

    The caller excludes others. Wrong bytes are fetched once more from the first.

    Args:
        file: which one.
        partial: holds the whole file, synced to disk, on return; what has come, after an error.
        note: keeps the entity tag of what is in ``partial``.
        size: bytes that it has.
        sha256: their digest, hexadecimal.
        patience: the deadlines.

    Raises:
        DataError: it is not there, does not come in time, or its bytes are wrong.
        OSError: ``partial`` cannot be written.
    """
    for is_last in (False, True):
        with _Partial(partial, note) as sink:
            try:
                if sink.size != size:
                    _fill(file, sink, size, size, patience)
                found = sink.digest.hexdigest()
                if found != sha256:
                    raise _WrongError(f"its sha256 is {found}, the manifest says {sha256}")
                os.fsync(sink.descriptor)
            except _WrongError as error:
                sink.begin(None)
                if is_last:
                    raise DataError(
                        f"{file}: wrong bytes, also when fetched again: {error}; upload it again "
                        "together with its manifest.json"
                    ) from None
            else:
                return


def probe(file: RemoteFile, size: int, patience: Patience) -> str | None:
    """Ask for a file without fetching it; returns what is wrong, None if nothing is."""
    if is_pipe(file.base):
        return None  # it would write the whole file
    try:
        with _Transfer(file, 0, None, patience, time.monotonic() + patience.stall_seconds) as one:
            found = one.head()["bytes"]
    except (_BrokenError, DataError) as error:
        return str(error) if isinstance(error, DataError) else f"{file}: {error}"
    if found in (None, size):
        return None
    return f"{file}: {found:,} bytes, the manifest says {size:,}; upload it again"


def _fill(
    file: RemoteFile, sink: _Sink, size: int | None, most_bytes: int, patience: Patience
) -> None:
    """Bring a sink to its size, over as many transfers as it takes."""
    started = moved = time.monotonic()
    give_up = started + patience.total_seconds(most_bytes if size is not None else 0)
    tries = fruitless = 0
    while True:
        reached = sink.size
        tries += 1
        try:
            with _Transfer(file, sink.size, sink.etag, patience, give_up) as one:
                return _copy(one, sink, size, most_bytes)
        except _BrokenError as error:
            now = time.monotonic()
            if sink.size > reached:
                moved, fruitless = now, 0
            fruitless += 1
            longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (fruitless - 1))
            pause = longest * random.uniform(0.5, 1.0)
            out_of_tries = is_pipe(file.base) and tries >= _COMMAND_TRIES
            if out_of_tries or now + pause > min(give_up, moved + patience.retry_seconds):
                expected = "" if size is None else f" of {size:,}"
                raise DataError(
                    f"{file}: {error}; given up after {tries} tries in {now - started:.0f} s with "
                    f"{sink.size:,}{expected} bytes; when it can be fetched again, the same "
                    "command continues"
                ) from None
        time.sleep(pause)


def _copy(one: "_Transfer", sink: _Sink, size: int | None, most_bytes: int) -> None:
    head = one.head()
    promised = head["bytes"]
    if size is not None and promised is not None and promised != size:
        raise _WrongError(f"{promised:,} bytes, the manifest says {size:,}")
    if head["start"] != sink.size or sink.size == 0:
        sink.begin(head["etag"])
    for data in one.chunks():
        if sink.size + len(data) > most_bytes:
            raise _WrongError(f"more than the {most_bytes:,} bytes expected")
        sink.append(data)
    expected = promised if size is None else size
    if expected is not None and sink.size < expected:
        raise _BrokenError(f"the transfer ended after {sink.size:,} of {expected:,} bytes")


class _Memory:
    """A sink for a small file."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.etag: str | None = None

    @property
    def size(self) -> int:
        return len(self.data)

    def begin(self, etag: str | None) -> None:
        self.data.clear()
        self.etag = etag

    def append(self, data: bytes) -> None:
        self.data += data


class _Partial:
    """A sink on disk that outlives its process; its digest grows with it."""

    def __init__(self, path: Path, note: Path):
        self._note = note
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self.descriptor = os.open(path, flags, 0o600)
        self.size = 0
        self.digest = hashlib.sha256()
        self.etag: str | None = None

    def __enter__(self) -> Self:
        self.etag = self._note.read_text(encoding="utf-8") or None
        while data := os.pread(self.descriptor, _CHUNK_BYTES, self.size):
            self.digest.update(data)
            self.size += len(data)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def begin(self, etag: str | None) -> None:
        # In this order a crash leaves no bytes under the tag of others.
        os.ftruncate(self.descriptor, 0)
        self._note.write_text(etag or "", encoding="utf-8")
        self.size, self.digest, self.etag = 0, hashlib.sha256(), etag

    def append(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += os.pwrite(self.descriptor, data[written:], self.size + written)
        self.digest.update(data)
        self.size += len(data)


class _Transfer:
    """A child process that writes a file, from some byte on."""

    def __init__(
        self,
        file: RemoteFile,
        start: int,
        etag: str | None,
        patience: Patience,
        give_up: float,
    ):
        self._file = file
        self._patience = patience
        self._give_up = give_up
        self._rest = b""
        self._request = {
            "url": "" if is_pipe(file.base) else file.url,
            "start": start,
            "etag": etag,
            "timeout_seconds": patience.stall_seconds,
        }

    def __enter__(self) -> Self:
        piped = is_pipe(self._file.base)
        # -P: the modules beside the program are none of its own.
        program = [sys.executable, "-P", str(Path(transfer.__file__))]
        self._errors = os.memfd_create("errors")
        try:
            self._child = subprocess.Popen(
                self._file.words if piped else program,
                stdin=subprocess.DEVNULL if piped else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            os.close(self._errors)
            command = self._file.words[0] if piped else program[0]
            raise DataError(f"{self._file}: cannot run {command}: {error.strerror}") from None
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self._child.stdin as stdin:
                stdin.write(json.dumps(self._request).encode())
        assert self._child.stdout is not None  # noqa: S101
        self._output = self._child.stdout.fileno()
        with contextlib.suppress(OSError):  # over the user's limit of pipe memory
            fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, _CHUNK_BYTES)
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child.returncode is None:  # not waited for, so its number is still its own
            os.killpg(self._child.pid, signal.SIGKILL)
        assert self._child.stdout is not None  # noqa: S101
        self._child.stdout.close()
        self._child.wait()
        os.close(self._errors)

    def head(self) -> dict[str, Any]:
        """Where the bytes begin, how many the whole file has, and its entity tag."""
        if is_pipe(self._file.base):
            return {"start": 0, "bytes": None, "etag": None}
        line = b""
        while b"\n" not in line and len(line) < _HEAD_BYTES:
            data = self._read(_HEAD_BYTES)
            if not data:
                self._finish()
                raise _BrokenError("the transfer said nothing")
            line += data
        line, _, self._rest = line.partition(b"\n")
        return json.loads(line)

    def chunks(self) -> Iterator[bytes]:
        """The bytes, until the child has written them all; raises if it says otherwise."""
        if self._rest:
            yield self._rest
        while data := self._read(_CHUNK_BYTES):
            yield data
        self._finish()

    def _read(self, count: int) -> bytes:
        left = self._give_up - time.monotonic()
        wait = min(self._patience.stall_seconds, left)
        if wait <= 0 or not self._poll.poll(wait * 1000):
            if left <= self._patience.stall_seconds:
                raise _BrokenError("the time for this file is up")
            raise _BrokenError(f"no byte came for {self._patience.stall_seconds:g} s")
        return os.read(self._output, count)

    def _finish(self) -> None:
        try:
            code = self._child.wait(timeout=self._patience.stall_seconds)
        except subprocess.TimeoutExpired:
            raise _BrokenError("its command closed its output but does not end") from None
        if code == 0:
            return
        end = os.lseek(self._errors, 0, os.SEEK_END)
        said = os.pread(self._errors, 500, max(0, end - 500)).decode(errors="replace")
        said = said.strip().splitlines()
        reason = said[-1] if said else f"the transfer ended with code {code}"
        if is_pipe(self._file.base):
            raise _BrokenError(f"its command ended with code {code}: {reason}")
        if code == transfer.FINAL:
            raise DataError(f"{self._file}: {reason}; check data.path and what is stored there")
        raise _BrokenError(reason)
