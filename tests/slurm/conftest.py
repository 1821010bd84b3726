"""A private Slurm cluster of two nodes on this machine: no root, no munge, gone with the tests."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE_SECONDS = 60
CONF = """\
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
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
SlurmdTimeout=15
SlurmdParameters=config_overrides
NodeName=127.0.0.[2-3] NodeHostname={host} Port=[{ports[1]}-{ports[2]}] CPUs=8 RealMemory=8000 \
Gres=gpu:8 Features=fast,large
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=grace Nodes=ALL PriorityTier=0 GraceTime=15
PartitionName=high Nodes=ALL PriorityTier=10
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Path of the running cluster's slurm.conf; SLURM_CONF points at it while tests use it."""
    for program in ("slurmctld", "slurmd", "sbatch", "srun", "scontrol"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH (Debian: apt-get install slurm-wlm)")
    root = tmp_path_factory.mktemp("slurm")
    conf = _write_conf(root)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
    environment = clean | {"SLURM_CONF": str(conf)}
    commands = [["slurmctld", "-D", "-i", "-f", str(conf)]]
    commands += [["slurmd", "-D", "-N", f"127.0.0.{i}", "-f", str(conf)] for i in (2, 3)]
    daemons = [
        _start(command, root / f"daemon-{i}.log", environment) for i, command in enumerate(commands)
    ]
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        _wait_until_idle(root)
        yield conf
    finally:
        subprocess.run(["scancel", "--user", _me()], check=False, capture_output=True, timeout=30)
        _end(daemons)
        _end_jobs(conf)
        os.environ.clear()
        os.environ.update(before)


def _write_conf(root: Path) -> Path:
    for name in ("state", "dev", "spool-127.0.0.2", "spool-127.0.0.3"):
        (root / name).mkdir()
    for index in range(8):
        (root / "dev" / f"gpu{index}").symlink_to("/dev/null")
    (root / "gres.conf").write_text(f"Name=gpu File={root}/dev/gpu[0-7]\n")
    host = socket.gethostname().split(".")[0]
    conf = root / "slurm.conf"
    conf.write_text(CONF.format(host=host, user=_me(), root=root, ports=_three_free_ports()))
    return conf


def _me() -> str:
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def _three_free_ports() -> list[int]:
    for first in range(17000 + os.getpid() % 2000, 20000, 3):
        ports = [first, first + 1, first + 2]
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


def _start(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(1, signal.SIGKILL),  # PR_SET_PDEATHSIG
        )


def _wait_until_idle(root: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    command = ["sinfo", "-h", "-p", "main", "-o", "%T%D"]
    while True:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.stdout.strip() == "idle2":
            return
        if time.monotonic() > deadline:
            logs = "\n".join(log.read_text() for log in root.glob("daemon-*.log"))
            raise RuntimeError(f"the cluster did not start: {answer}\n{logs[-4000:]}")
        time.sleep(0.1)


def _end(daemons: list[subprocess.Popen[bytes]]) -> None:
    for daemon in daemons:
        daemon.terminate()
    for daemon in daemons:
        try:
            daemon.wait(3)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _end_jobs(conf: Path) -> None:
    """Kill what jobs of this very cluster left behind."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = f"SLURM_CONF={conf}".encode() in environ
        if ours and any(entry.startswith(b"SLURM_JOB_ID=") for entry in environ):
            try:
                os.kill(int(process.name), signal.SIGKILL)
            except ProcessLookupError:
                continue
