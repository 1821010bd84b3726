"""Two ranks that die at a chosen system call: forked from a warm process, killed by strace.

A rank's work calls ``gate()`` where the danger begins, in the thread that is to be followed. Under
strace the target dies by SIGKILL on entering that thread's n-th call of a kind from there on.
Where there is no strace, a shim around Python's own calls does it, and dies with half of a write on
the disk.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SYSCALLS = (
    "open,openat,creat,mkdir,mkdirat,write,pwrite64,writev,pwritev,sendfile,copy_file_range,"
    "ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,"
    "link,linkat,symlink,unlink,unlinkat,rmdir"
)
"""What can change a file system, and syncing it."""
SHIMMED = ("mkdir", "open", "write", "fsync", "rename", "replace", "link", "unlink", "rmdir")
SURVIVOR_SECONDS = 20.0
"""For the other rank to notice that its peer is gone; then it is killed."""
RANK_SECONDS = 240.0
_MARK = "/nowhere/at/the/gate"
_CALL = re.compile(r"(\w+)\(")

Work = Callable[[int, int, Callable[[], None]], None]
"""Called with rank, number of ranks and the gate."""


@dataclass(frozen=True)
class Death:
    """How a pair of ranks ended.

    Attributes:
        killed: the target died at its kill point.
        survivor: how the others ended: ``left`` by themselves, ``hung``, or ``killed`` with it.
    """

    killed: bool
    survivor: str


@dataclass
class _Rank:
    pid: int
    ready: int
    go: int
    thread: int = 0


def has_strace() -> bool:
    """Whether strace is here and may trace."""
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False)
    return done.returncode == 0


Point = tuple[str, int]
"""A system call and which of its kind, from 1; under the shim any kind and which of all."""


def list_points(work: Work, root: Path, target: int, *, ranks: int = 2) -> list[Point]:
    """Return the target's calls that change, create or sync something in ``root``, in order."""
    log = root.parent / f"{root.name}.strace"
    log.unlink(missing_ok=True)
    with _running(work, ranks) as started:
        tracer = _traced(started, target, log, None)
        _open_gates(started)
        codes = [_wait(rank.pid, RANK_SECONDS) for rank in started]
        tracer.wait(RANK_SECONDS)  # its log is complete only then
    if codes != [0] * ranks:
        raise RuntimeError(f"a run without kills ended with {codes}")
    seen: Counter[str] = Counter()
    points = []
    for line in log.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is not None:
            seen[match[1]] += 1
            if _changes(line, root):
                points.append((match[1], seen[match[1]]))
    log.unlink()
    return points


def _changes(call: str, root: Path) -> bool:
    if str(root) not in call:
        return False
    opened = call.lstrip().startswith("open")
    return not opened or any(flag in call for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))


def kill_at(
    work: Work,
    root: Path,
    target: int,
    point: Point,
    *,
    all_ranks: bool,
    shim: bool,
    ranks: int = 2,
) -> Death:
    """Run the ranks and kill the target at one point; then the others too, or watch them."""
    log = root.parent / f"{root.name}.strace"
    log.unlink(missing_ok=True)
    with _running(work, ranks, (target, point[1], root) if shim else None) as started:
        tracer = None if shim else _traced(started, target, log, point)
        _open_gates(started)
        code = _wait(started[target].pid, RANK_SECONDS)
        others = [rank for number, rank in enumerate(started) if number != target]
        killed = code == -signal.SIGKILL
        survivor = "left"
        if killed and all_ranks:
            survivor = "killed"
            for rank in others:
                os.kill(rank.pid, signal.SIGKILL)
        for rank in others:
            if _wait(rank.pid, SURVIVOR_SECONDS if killed else RANK_SECONDS) is None:
                survivor = "hung"
                os.kill(rank.pid, signal.SIGKILL)
                _wait(rank.pid, RANK_SECONDS)
        if tracer is not None:
            tracer.wait(RANK_SECONDS)
    log.unlink(missing_ok=True)
    return Death(killed, survivor)


def run_to_end(work: Work, *, ranks: int = 2) -> list[int | None]:
    """Run the ranks without any harm; return their exit codes."""
    with _running(work, ranks) as started:
        _open_gates(started)
        return [_wait(rank.pid, RANK_SECONDS) for rank in started]


@contextmanager
def _running(
    work: Work, ranks: int, shim: tuple[int, int, Path] | None = None
) -> Iterator[list[_Rank]]:
    """Fork the ranks and wait until each is at its gate; none outlives the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [_fork(work, rank, ranks, shim) for rank in range(ranks)]
    try:
        for rank in started:
            rank.thread = int.from_bytes(os.read(rank.ready, 8), "little")
        yield started
    finally:
        for rank in started:
            if _wait(rank.pid, 0.0) is None:
                os.kill(rank.pid, signal.SIGKILL)
                _wait(rank.pid, RANK_SECONDS)
            _ended.pop(rank.pid, None)
            os.close(rank.ready)
            os.close(rank.go)


def _fork(work: Work, rank: int, ranks: int, shim: tuple[int, int, Path] | None) -> _Rank:
    ready, tell_ready = os.pipe()
    wait_go, go = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell_ready)
        os.close(wait_go)
        return _Rank(pid, ready, go)
    code = 1
    try:
        os.close(ready)
        os.close(go)

        def gate() -> None:
            os.write(tell_ready, threading.get_native_id().to_bytes(8, "little"))
            os.set_blocking(wait_go, False)
            while True:
                with contextlib.suppress(BlockingIOError):
                    os.read(wait_go, 1)
                    break
                with contextlib.suppress(FileNotFoundError):
                    Path(_MARK).symlink_to("seen")  # fails; the tracer shows that it sees it
                time.sleep(0.001)
            if shim is not None and shim[0] == rank:
                _install_shim(shim[1], shim[2])

        work(rank, ranks, gate)
        code = 0
    except BaseException:  # noqa: BLE001 - the fork must not run on as if it were the harness
        if "KILL_POINTS_VERBOSE" in os.environ:
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _open_gates(started: list[_Rank]) -> None:
    for rank in started:
        os.write(rank.go, b"g")


def _traced(
    started: list[_Rank], target: int, log: Path, point: Point | None
) -> subprocess.Popen[bytes]:
    """Attach strace to a rank's thread and wait until it is."""
    rank = started[target]
    command = ["strace", "-qq", "-y", "-o", str(log), "-e", f"trace={SYSCALLS}"]
    if point is not None:
        command += ["-e", f"inject={point[0]}:signal=KILL:when={point[1]}"]
    tracer = subprocess.Popen(
        [*command, "-p", str(rank.thread)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while not (log.exists() and _MARK in log.read_text(errors="replace")):
        if time.monotonic() > deadline:
            raise RuntimeError("strace did not attach; may this user trace (ptrace_scope)?")
        time.sleep(0.002)
    return tracer


_ended: dict[int, int] = {}


def _wait(pid: int, seconds: float) -> int | None:
    """Return a rank's exit code, negative for a signal; None while it runs after ``seconds``."""
    deadline = time.monotonic() + seconds
    while pid not in _ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            _ended[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= deadline:
            return None
        else:
            time.sleep(0.0005)
    return _ended[pid]


def _install_shim(point: int, root: Path) -> None:
    """Die at the n-th call that reaches ``root``: before it, or in the middle if it is a write."""
    left = point
    opened: set[int] = set()

    def wrap(name: str) -> None:
        original = getattr(os, name)

        def shimmed(first: object, *arguments: object, **named: object) -> object:
            nonlocal left
            ours = first in opened if isinstance(first, int) else str(root) in os.fspath(first)  # pyright: ignore
            ours = ours or named.get("dir_fd") in opened
            if ours and not (name == "open" and arguments[0] == os.O_RDONLY):
                left -= 1
                if left == 0:
                    if name == "write":
                        original(first, arguments[0][: len(arguments[0]) // 2])  # pyright: ignore
                    os.kill(os.getpid(), signal.SIGKILL)
            result = original(first, *arguments, **named)
            if name == "open" and ours:
                opened.add(result)
            return result

        setattr(os, name, shimmed)

    for name in SHIMMED:
        wrap(name)
