"""A private Slurm cluster on this machine, and the deaths its parts can die: no root, no munge.

Needs Slurm's own daemons (Debian: ``apt-get install slurm-wlm``). Never outside loopback: it asks
nobody who he is.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PATIENCE_SECONDS = 60
FIRST_NODE = 2
"""Node names are addresses, 127.0.0.2 and up, so that nothing has to resolve them."""

# A requeued job waits for its credential to expire, two minutes by default: cred_expire.
_CONF = """\
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
AuthInfo=cred_expire={requeue_seconds}
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/ctld.pid
SlurmdPidFile={root}/d-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobRequeue=0
Licenses=swin:4
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
SlurmdTimeout={node_timeout_seconds}
MessageTimeout={node_timeout_seconds}
TCPTimeout=1
SlurmdParameters=config_overrides
NodeName=127.0.0.[{first}-{last}] NodeHostname={host} Port=[{ports[1]}-{ports[2]}] CPUs=8 \
RealMemory=8000 Gres=gpu:8 Features=fast,large
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=grace Nodes=ALL PriorityTier=0 GraceTime=15
PartitionName=high Nodes=ALL PriorityTier=10
"""


def missing_program() -> str | None:
    """The first program that a cluster needs and that is not on PATH; None where all are."""
    return next((program for program in PROGRAMS if shutil.which(program) is None), None)


class PrivateCluster:
    """A controller and nodes as processes of this machine; they die with this process.

    Args:
        root: an empty directory of its own, for state and logs.
        nodes: machines it pretends to have, each of 8 cores and 8 GPUs.
        requeue_seconds: how long Slurm holds a job that was put back into the queue (and how long
            a job may take to launch); Slurm's own default is 120.
        node_timeout_seconds: silence after which Slurm takes a node for lost.

    Attributes:
        conf: its slurm.conf.
        nodes: their names.
    """

    def __init__(
        self,
        root: Path,
        nodes: int,
        *,
        requeue_seconds: int = 120,
        node_timeout_seconds: int = 15,
    ) -> None:
        self.conf = root / "slurm.conf"
        self.nodes = tuple(f"127.0.0.{FIRST_NODE + index}" for index in range(nodes))
        self._root = root
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "dev", *(f"spool-{node}" for node in self.nodes)):
            (root / name).mkdir()
        for index in range(8):
            (root / "dev" / f"gpu{index}").symlink_to("/dev/null")
        (root / "gres.conf").write_text(f"Name=gpu File={root}/dev/gpu[0-7]\n")
        ports = _free_ports(1 + nodes)
        self.conf.write_text(
            _CONF.format(
                host=socket.gethostname().split(".")[0],
                user=_me(),
                root=root,
                ports=(ports[0], ports[1], ports[-1]),
                first=FIRST_NODE,
                last=FIRST_NODE + nodes - 1,
                requeue_seconds=requeue_seconds,
                node_timeout_seconds=node_timeout_seconds,
            )
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Have it up, and all of this process's Slurm commands mean it, until the block ends.

        Raises:
            RuntimeError: it does not come up.
        """
        before = dict(os.environ)
        for name in [name for name in before if name.startswith(("SLURM", "SBATCH", "SRUN"))]:
            del os.environ[name]
        os.environ["SLURM_CONF"] = str(self.conf)
        try:
            self.start_controller()
            for node in self.nodes:
                self.start_node(node)
            self.wait_until_idle()
            yield
        finally:
            cancel = ["scancel", "--user", _me()]
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(cancel, check=False, capture_output=True, timeout=30)
            for daemon in self._daemons.values():
                daemon.terminate()
            for daemon in self._daemons.values():
                _wait_or_kill(daemon)
            _kill(self.processes())
            os.environ.clear()
            os.environ.update(before)

    def start_controller(self) -> None:
        """Start slurmctld, which takes up what an earlier one left."""
        self._start("controller", ["slurmctld", "-D", "-i", "-f", str(self.conf)])

    def kill_controller(self) -> None:
        """Kill slurmctld: jobs go on, nobody can ask about them."""
        self._daemons["controller"].kill()
        self._daemons["controller"].wait()

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self._start(node, ["slurmd", "-D", "-N", node, "-f", str(self.conf)])

    def kill_node(self, node: str) -> None:
        """Kill everything there at once, as a power cut does: slurmd, steps, their processes."""
        self._daemons[node].send_signal(signal.SIGSTOP)  # or it would report the first deaths
        deadline = time.monotonic() + PATIENCE_SECONDS
        while doomed := self.processes(node):
            _kill(doomed)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{node}: processes do not die: {doomed}")
        self._daemons[node].kill()
        self._daemons[node].wait()

    def processes(self, node: str | None = None) -> list[int]:
        """Ids of the processes of jobs, of one node or all, those who watch over them first."""
        found: dict[int, int] = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environ = set((process / "environ").read_bytes().split(b"\0"))
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if f"SLURM_CONF={self.conf}".encode() not in environ:
                continue
            if node is not None and f"SLURMD_NODENAME={node}".encode() not in environ:
                continue
            left_over = node is None and _name(int(process.name)) == "slurmstepd"
            if left_over or any(entry.startswith(b"SLURM_JOB_ID=") for entry in environ):
                found[int(process.name)] = parent
        watchers = {parent for parent in found.values() if _name(parent) == "slurmstepd"}
        return [*watchers, *found]

    def wait_until_idle(self) -> None:
        """Wait until every node is up and has nothing to do.

        Raises:
            RuntimeError: it takes too long.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        command = ["sinfo", "-h", "-p", "main", "-o", "%T%D"]
        while True:
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.stdout.strip() == f"idle{len(self.nodes)}":
                return
            if time.monotonic() > deadline:
                logs = "\n".join(log.read_text() for log in self._root.glob("daemon-*.log"))
                raise RuntimeError(f"the cluster did not start: {answer}\n{logs[-4000:]}")
            time.sleep(0.1)

    def _start(self, name: str, command: list[str]) -> None:
        libc = ctypes.CDLL(None)
        with (self._root / f"daemon-{name}.log").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(1, signal.SIGKILL),  # PR_SET_PDEATHSIG
            )


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def _kill(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _wait_or_kill(daemon: subprocess.Popen[bytes]) -> None:
    try:
        daemon.wait(3)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _me() -> str:
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def _free_ports(count: int) -> list[int]:
    for first in range(17000 + os.getpid() % 2000, 20000, count):
        ports = list(range(first, first + count))
        if all(_is_free(port) for port in ports):
            return ports
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
