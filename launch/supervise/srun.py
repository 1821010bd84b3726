"""The ranks of one attempt as a job step: ``srun`` inside the allocation of a Slurm job."""

import re
import signal
import subprocess
from collections.abc import Sequence

from launch.container import step_arguments
from launch.processes import die_with_parent
from launch.scheduler import first_node_address
from launch.supervise.decide import Failure
from launch.supervise.ranks import (
    Layout,
    cause_of_exit,
    describe_exit,
    free_port,
    shared_environment,
)
from pretrain.errors import EXIT_BAD_INPUT, LaunchError
from pretrain.run_directory import RunDirectory
from pretrain.watchdog import STACKS_SIGNAL

_NAME_THE_RANK = (
    'export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS" LOCAL_RANK="$SLURM_LOCALID" '
    'LOCAL_WORLD_SIZE="$RANKS_PER_NODE"; exec "$@"'
)
_TASK_ENDED = re.compile(
    r"srun: error: (?P<node>\S+): tasks? (?P<tasks>[\d,\-]+): (?P<how>.+?)(?: \(core dumped\))?$"
)
_NODE_FAILED = re.compile(r"srun: error: Node failure on (?P<node>\S+)")
_NOT_LAUNCHED = re.compile(
    r"srun: error: (?P<why>.*(?:launch|create step|conflicts with allocated).*)"
)
_ON_NODE = re.compile(r"failed on node (?P<node>[^\s:]+)")
_ENDING = re.compile(r"_step_signal: Terminating|Job step aborted|Force Terminated")
_EXIT_CODE = re.compile(r"Exited with exit code (\d+)")
_INNOCENT = ("Terminated", "Exited with exit code 143")


class SlurmRanks:
    """The ranks of an attempt, running on the nodes of this job.

    ``srun`` kills the step when one rank ends badly, writes a log per rank, and passes signals on.
    """

    def __init__(
        self, command: Sequence[str], run: RunDirectory, attempt: int, layout: Layout
    ) -> None:
        threads = layout.threads_per_rank or layout.cpus_per_rank
        environment = shared_environment(
            attempt, address=first_node_address(), port=free_port(), threads=threads
        )
        environment["RANKS_PER_NODE"] = str(layout.ranks_per_node)
        self._said = run.attempt_dir(attempt) / "srun.log"
        # A number after the percent sign pads with zeros, as `RunDirectory.rank_log` does.
        logs = str(run.attempt_dir(attempt)).replace("%", "%%") + "/rank_%3t.log"
        try:
            with self._said.open("ab") as output:
                self._srun = subprocess.Popen(
                    [*_srun_command(layout, run, logs), *command],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent(signal.SIGTERM),
                )
        except OSError as error:
            raise LaunchError(f"cannot start srun: {error}") from None

    @property
    def processes(self) -> list[tuple[int, int]]:
        """None to remember: Slurm ends the step with its job."""
        return []

    def ended(self) -> bool:
        """Whether the step has ended, well or badly."""
        return self._srun.poll() is not None

    def any_ended(self) -> bool:
        """Whether at least one rank has ended; known at the end of the step only."""
        return self.ended()

    def failure(self) -> Failure | None:
        """Why the step ended badly, from what ``srun`` reported; None while it runs."""
        code = self._srun.poll()
        if not code:
            return None
        return read_failure(self._said.read_text(encoding="utf-8", errors="replace"), code)

    def ask_to_stop(self) -> None:
        """Ask every rank to save and leave.

        With SIGUSR2, which ``srun`` only passes on; others it also takes as meant for itself.
        """
        if self._srun.poll() is None:
            self._srun.send_signal(signal.SIGUSR2)

    def ask_for_stacks(self) -> None:
        """Ask every rank to write down where its threads stand; ``srun`` passes the signal on."""
        if self._srun.poll() is None:
            self._srun.send_signal(STACKS_SIGNAL)

    def kill(self) -> None:
        """End the step at once and wait until ``srun`` is gone."""
        if self._srun.poll() is None:
            self._srun.send_signal(signal.SIGINT)  # --quit-on-interrupt: ends the step
            try:
                self._srun.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._srun.kill()
        self._srun.wait()


def read_failure(text: str, code: int) -> Failure:
    """Find in ``srun``'s messages what failed first.

    That is the task that ended before ``srun`` began to end the others. Of several, one that a
    signal killed outweighs those that left by themselves, having lost a peer; one that refused its
    input outweighs all.
    """
    lines = text.splitlines()
    ending = next((i for i, line in enumerate(lines) if _ENDING.search(line)), len(lines))
    found = [(i, match) for i, line in enumerate(lines) if (match := _TASK_ENDED.match(line))]
    guilty = [(i, end) for i, end in found if end["how"] not in _INNOCENT]
    refused = [end for _, end in guilty if _exit_code(end) == EXIT_BAD_INPUT]
    first = [end for i, end in guilty if i < ending]
    killed = [end for end in first if _exit_code(end) is None]
    lost = lost_nodes(text)
    if lost and not refused and not first:
        return Failure(None, f"Slurm lost node {lost[0]}", "node_lost", lost[0])
    if guilty:
        everything = [end for _, end in guilty]
        return _failure_of((refused or killed or first or everything)[0])
    return _not_launched(lines, code)


def lost_nodes(text: str) -> list[str]:
    """Nodes that failed under a step, from ``srun``'s messages."""
    return [match["node"] for line in text.splitlines() if (match := _NODE_FAILED.match(line))]


def _failure_of(end: re.Match[str]) -> Failure:
    rank = int(re.split(r"[,\-]", end["tasks"])[0])
    code = _exit_code(end)
    cause = "rank_died" if code is None else cause_of_exit(code)
    how = end["how"][0].lower() + end["how"][1:]
    if code is not None and cause != "rank_died":
        how = describe_exit(code)
    return Failure(rank, f"rank {rank} on {end['node']}: {how}", cause, end["node"])


def _not_launched(lines: Sequence[str], code: int) -> Failure:
    """What to make of a step that ended without a word about any task."""
    last = next((line for line in reversed(lines) if line.strip()), "no message")
    reason = f"srun exited with code {code}: {last.strip()}"
    said = next((match for line in lines if (match := _NOT_LAUNCHED.match(line))), None)
    if said is None:
        return Failure(None, reason)
    node = _ON_NODE.search(said["why"])
    reason = f"srun launched no ranks: {said['why']}"
    return Failure(None, reason, "never_started", node["node"] if node else None)


def _exit_code(end: re.Match[str]) -> int | None:
    match = _EXIT_CODE.search(end["how"])
    return int(match[1]) if match else None


def _srun_command(layout: Layout, run: RunDirectory, logs: str) -> list[str]:
    command = [
        "srun",
        "--kill-on-bad-exit=1",
        "--quit-on-interrupt",
        f"--nodes={layout.nodes}",
        f"--ntasks={layout.size}",
        f"--ntasks-per-node={layout.ranks_per_node}",
        "--distribution=block",  # rank over ranks per node is the node's place in the list
        f"--chdir={run.code_path}",
        f"--output={logs}",
        "--open-mode=append",
    ]
    if layout.cpus_per_rank is not None:  # not inherited from sbatch since Slurm 22.05
        command.append(f"--cpus-per-task={layout.cpus_per_rank}")
    command += step_arguments(run.read_config(), run)
    return [*command, "sh", "-c", _NAME_THE_RANK, "rank"]
