"""The ranks of one attempt as a job step: ``srun`` inside the allocation of a Slurm job."""

import re
import signal
import subprocess
from collections.abc import Sequence

from launch.container import step_arguments
from launch.processes import die_with_parent
from launch.ranks import Failure, Layout, describe_exit, free_port, shared_environment
from launch.scheduler import first_node_address
from pretrain.errors import EXIT_BAD_INPUT, EXIT_HUNG, LaunchError
from pretrain.run_directory import RunDirectory

_NAME_THE_RANK = (
    'export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS" LOCAL_RANK="$SLURM_LOCALID" '
    'LOCAL_WORLD_SIZE="$RANKS_PER_NODE"; exec "$@"'
)
_TASK_ENDED = re.compile(
    r"srun: error: (?P<node>\S+): tasks? (?P<tasks>[\d,\-]+): (?P<how>.+?)(?: \(core dumped\))?$"
)
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
    """Find in ``srun``'s messages the task that failed first: the one not merely terminated."""
    ends = [match for line in text.splitlines() if (match := _TASK_ENDED.match(line))]
    guilty = [end for end in ends if end["how"] not in _INNOCENT]
    refused = [
        end
        for end in guilty
        if (match := _EXIT_CODE.search(end["how"])) and int(match[1]) == EXIT_BAD_INPUT
    ]
    if not guilty:
        last = text.strip().splitlines()[-1:] or ["no message"]
        return Failure(None, f"srun exited with code {code}: {last[0]}")
    end = (refused or guilty)[0]
    rank = int(re.split(r"[,\-]", end["tasks"])[0])
    match = _EXIT_CODE.search(end["how"])
    hung = match is not None and int(match[1]) == EXIT_HUNG
    how = describe_exit(EXIT_HUNG) if hung else end["how"][0].lower() + end["how"][1:]
    return Failure(rank, f"rank {rank} on {end['node']}: {how}", bad_input=bool(refused))


def _srun_command(layout: Layout, run: RunDirectory, logs: str) -> list[str]:
    command = [
        "srun",
        "--kill-on-bad-exit=1",
        "--quit-on-interrupt",
        f"--nodes={layout.nodes}",
        f"--ntasks={layout.size}",
        f"--ntasks-per-node={layout.ranks_per_node}",
        f"--chdir={run.code_path}",
        f"--output={logs}",
        "--open-mode=append",
    ]
    if layout.cpus_per_rank is not None:  # not inherited from sbatch since Slurm 22.05
        command.append(f"--cpus-per-task={layout.cpus_per_rank}")
    command += step_arguments(run.read_config(), run)
    return [*command, "sh", "-c", _NAME_THE_RANK, "rank"]
